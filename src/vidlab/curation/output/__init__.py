"""What a curation hands on: shards, lists in published formats, the report."""
