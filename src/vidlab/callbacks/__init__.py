"""What happens around training steps: averages, previews, progress, rates, checkpoints."""
