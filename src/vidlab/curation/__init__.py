"""Raw videos to indexed and encoded shards."""
