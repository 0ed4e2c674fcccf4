"""The one habit of all jobs: how options are read, progress is shown, results are printed and files are replaced."""
