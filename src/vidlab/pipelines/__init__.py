"""From prompts and frames to videos: models trained here and published systems."""
