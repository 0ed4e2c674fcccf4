"""How a cache is made: which sample goes into which shard, and one shard from its sources."""
