"""Index, shards, plan, decoding, sources of clips and the DataModule."""
