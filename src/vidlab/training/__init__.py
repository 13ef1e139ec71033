"""The LightningModule, its optimization and its checkpoints."""
