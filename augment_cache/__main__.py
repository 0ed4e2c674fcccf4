"""`python -m augment_cache` lists the jobs of this package."""

from pipelines.console.job import list_jobs

if __name__ == "__main__":
    list_jobs("augment_cache")
