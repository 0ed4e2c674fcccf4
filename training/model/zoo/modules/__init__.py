"""The modules of the zoo, one family a file."""
