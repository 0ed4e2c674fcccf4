"""`python -m training` lists the jobs of this package."""

from pipelines.console.job import list_jobs

if __name__ == "__main__":
    list_jobs("training")
