"""A WF-VAE as its authors publish it: a folder with its sizes and weights."""

from pathlib import Path
from typing import Any

from vidlab.autoencoders.wfvae.model import WFVAE
from vidlab.autoencoders.wfvae.weights import CONFIG, settings_of, stored_compat
from vidlab.errors import UserError
from vidlab.hub import read_json


def published(folder: str | Path, **settings: Any) -> WFVAE:
    """The autoencoder of a published folder, of the sizes its ``config.json`` names and with the wavelets it holds.

    Args:
        folder: with ``config.json`` and weights.
        settings: arguments of ``WFVAE`` that count before those of the folder, such as ``chunk``, ``dropout`` or
            ``scale``; ``compat`` follows from the wavelets in the file.

    Raises:
        UserError: as ``load_weights`` and ``settings_of``; sizes other than the folder's among ``settings`` too.
    """
    file = Path(folder).expanduser() / CONFIG
    if not file.is_file():
        raise UserError(f"{folder} is not a published autoencoder: it has no {CONFIG}.")
    of_folder = settings_of(read_json(file), str(file)) | {"compat": stored_compat(file.parent)}
    return WFVAE(**(of_folder | settings), path=str(folder))
