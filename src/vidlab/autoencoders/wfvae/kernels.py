"""The Haar kernels that published WF-VAE files hold as parameters; here they are compared and left."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vidlab.errors import UserError
from vidlab.layers.wavelets import EXACT, RELEASED

SPACE_TIME = "encoder.wavelet_transform_in.h_conv.conv.weight"  # one of the kernels whose gain differs


def wavelet_kernels(gain: float) -> dict[str, Tensor]:
    """The kernels that published files hold, by name.

    In time, rows and columns (1, 1) is the low-pass and (1, -1) the high-pass filter, times ``gain``; 1/2 in space.
    """
    low, high = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
    kernels: dict[str, Tensor] = {}
    for time, suffix in ((low, ""), (high, "_v")):
        for name, rows, columns in (("h", low, low), ("g", low, high), ("hh", high, low), ("gh", high, high)):
            kernel = gain * torch.einsum("t,h,w->thw", time, rows, columns)[None, None]
            for place in ("in", "l2"):
                kernels[f"encoder.wavelet_transform_{place}.{name}{suffix}_conv.conv.weight"] = kernel.clone()
            for place in ("out", "l2"):
                kernels[f"decoder.inverse_wavelet_transform_{place}.{name}{suffix}"] = kernel.clone()
    for name, rows, columns in (("aa", low, low), ("ad", high, low), ("da", low, high), ("dd", high, high)):
        for coder in ("encoder.", "decoder.inverse_"):
            kernels[f"{coder}wavelet_transform_l1.{name}"] = 0.5 * torch.outer(rows, columns)[None, None]
    return kernels


def check_kernels(kernels: Mapping[str, Tensor], compat: bool, source: str) -> None:
    """The wavelets of a file must be the model's, to the precision the file stores.

    Args:
        kernels: of a file, by name.
        compat: whether the model's are those of published weights.
        source: the file, for messages.

    Raises:
        UserError: they are not, with the setting that fits them.
    """
    for other in (compat, not compat):
        expected = wavelet_kernels(RELEASED if other else EXACT)
        agree = [
            stored.shape == expected[name].shape
            and torch.allclose(stored.float(), expected[name], rtol=0.5 * torch.finfo(stored.dtype).eps, atol=1e-6)
            for name, stored in kernels.items()
        ]
        if all(agree):
            if other != compat:
                raise UserError(
                    f"{source} was trained with wavelets of {RELEASED if other else '1 / (2 sqrt 2)'}. "
                    f"Set autoencoder.compat={str(other).lower()}."
                )
            return
    raise UserError(f"{source} holds wavelet kernels that are not Haar's, so vidlab cannot reproduce it.")


def are_released(state: Mapping[str, Tensor]) -> bool:
    """Whether weights were trained with the published wavelets, as those are that hold no kernels."""
    exact, stored = wavelet_kernels(EXACT)[SPACE_TIME], state.get(SPACE_TIME)
    return stored is None or stored.shape != exact.shape or not torch.allclose(stored.float(), exact, atol=1e-6)
