"""Contestants of `tests.benchmarks.cache_build`: one module per way of making the same three images of every source."""
