"""Parts of autoencoder training: losses, turns of generator and discriminator, augmentation, latent scale."""
