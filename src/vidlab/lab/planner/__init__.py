"""What a training would cost, before anything runs: ``plan=true``."""
