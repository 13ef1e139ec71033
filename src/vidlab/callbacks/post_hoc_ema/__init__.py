"""Post-hoc EMA: power-function averages of the weights, whose length is chosen after training (Karras et al. 2024)."""
