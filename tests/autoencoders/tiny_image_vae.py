"""A tiny image autoencoder in the form that diffusers writes."""

from pathlib import Path

import diffusers
import torch


def write_image_vae(folder: Path, **settings) -> diffusers.AutoencoderKL:
    """Random weights: two levels (stride 2), 4 channels."""
    torch.manual_seed(0)
    sizes = {
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4, "scaling_factor": 0.5,
    }  # fmt: skip
    vae = diffusers.AutoencoderKL(**(sizes | settings)).eval()
    vae.save_pretrained(folder)
    return vae
