"""Training data: data sets, shards and their index, sampling plans, video decoding, the LightningDataModule."""
