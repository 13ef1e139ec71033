"""Arrays out of HDF5 files, as Keras keeps weights."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidlab.errors import UserError

_LARGEST = 1 << 30  # bytes of one array


def read_hdf5(path: Path) -> dict[str, Tensor]:
    """The arrays of plain numbers in a file, by their path in it; links to elsewhere are not followed.

    Raises:
        UserError: no HDF5 file, or an array too large.
    """
    import h5py

    found: dict[str, Tensor] = {}

    def take(name: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiu" or item.external or item.is_virtual:
            return
        if item.size * item.dtype.itemsize > _LARGEST:
            raise UserError(f"{path}: {name} is larger than any array of the networks that are read here.")
        found[name] = torch.from_numpy(np.asarray(item[...], item.dtype.newbyteorder("=")))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(take)
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in whatever operation the damage leads to
        raise UserError(f"{path} cannot be read as HDF5: it is damaged or of another kind ({error}).") from None
    return found
