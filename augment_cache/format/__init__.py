"""The cache on disk: shards, manifest, policies, and the cache as a source of samples."""
