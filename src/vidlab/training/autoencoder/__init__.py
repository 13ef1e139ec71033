"""Parts of autoencoder training."""
