"""Find every byte of a cache that is not as it was written, and put it right."""
