"""The LightningModule, its optimisation and its checkpoints."""
