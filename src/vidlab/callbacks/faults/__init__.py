"""What goes wrong on purpose, to see what a training makes of it."""
