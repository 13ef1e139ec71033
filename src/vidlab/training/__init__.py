"""The LightningModules, their optimization and their checkpoints."""
