"""Folders of models, by local path or by their name on the Hugging Face hub."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidlab.digests import DamagedError, unsealed
from vidlab.errors import UserError, first_line

TIMEOUT = 10.0  # seconds
# Settings of a model's folder that have code fetched or run, with what they stand for.
CODE = {
    "auto_map": "classes of its own",
    "custom_pipelines": "pipelines of its own",
    "quantization_config": "kernels for quantized weights",
    "kernel_config": "kernels",
    "use_kernels": "kernels",
}
KERNELS = ("attn_implementation", "experts_implementation")  # at the end of a setting's name
TORCH_KERNELS = ("eager", "sdpa", "flex_attention")  # those that need no other package
ADAPTER = "adapter_config.json"
# Settings that count layers, which a library builds one by one before it looks at the weights.
LAYERS, MOST_LAYERS = "layer", 1024


def model_folder(
    reference: str, key: str, patterns: Sequence[str], complete: Callable[[Path], bool], advice: str = ""
) -> Path:
    """The local folder behind ``reference``, downloaded where it is neither a folder nor in the hub's cache.

    Args:
        reference: a local folder, or a hub id ``owner/name``, with a folder of that repository behind it where the
            model is one of several (``owner/name/folder``).
        key: the configuration key that held ``reference``, for messages.
        patterns: shell-style patterns of the files a model needs.
        complete: whether a cached folder holds what is needed; if not, the hub is asked.
        advice: a sentence that ends the message when nothing is found.

    Raises:
        UserError: no such folder, and the hub did not give it.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    if reference.startswith((".", "/", "~")) or "/" not in reference:
        raise UserError(f"{key}={reference}: there is no such folder ({folder.absolute()}).{advice}")
    owner, name, *below = reference.split("/")
    return _from_hub(f"{owner}/{name}", "/".join(below), reference, key, patterns, complete, advice)


def model_or_asset_folder(
    reference: str, key: str, patterns: Sequence[str], complete: Callable[[Path], bool], advice: str = ""
) -> Path:
    """As ``model_folder``, of models that are a whole repository; ``asset:NAME`` is a pinned one of ``vidlab.assets``.

    Raises:
        AssetError: there is no such pinned model, or it cannot be fetched.
        UserError: no such folder, and the hub did not give it.
    """
    if reference.startswith("asset:"):
        from vidlab.assets import fetch_folder

        return fetch_folder(reference.removeprefix("asset:"))
    folder = Path(reference).expanduser()
    if reference.count("/") > 1 and not folder.is_dir():
        raise UserError(f"{key}={reference}: there is no such folder ({folder.absolute()}).")
    return model_folder(reference, key, patterns, complete, advice)


def _from_hub(
    repository: str,
    subfolder: str,
    reference: str,
    key: str,
    patterns: Sequence[str],
    complete: Callable[[Path], bool],
    advice: str,
) -> Path:
    """The hub's local copy if it is complete, otherwise one quick look at the hub, then the download."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in patterns]
    try:
        folder = Path(snapshot_download(repository, local_files_only=True, allow_patterns=wanted)) / subfolder
        if complete(folder):
            return folder
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    try:
        HfApi().model_info(repository, timeout=TIMEOUT)
        return Path(snapshot_download(repository, allow_patterns=wanted)) / subfolder
    # The hub client raises its own, its HTTP library's and the system's errors.
    except Exception as error:
        reason = first_line(error)
        raise UserError(
            f"{key}={reference} is neither a local folder nor in the local hub cache, and the hub did not give it "
            f"({reason}). Correct the name, connect and run again, or give a local folder.{advice}"
        ) from error


def refuse_code(folder: Path, key: str) -> None:
    """Refuse a model whose folder asks for code of its own, for kernels from elsewhere, or for layers without end.

    It is asked before a library reads it. transformers and diffusers are told to trust no code; but they fetch kernels
    that a configuration names, follow an adapter to another model, and read the weights of a class of its own into a
    class of theirs that has the same name.

    Args:
        folder: with ``config.json`` and other JSON files of settings.
        key: the configuration key that named it, for messages.

    Raises:
        UserError: naming the file and the setting.
    """
    if (folder / ADAPTER).exists():
        raise UserError(f"{key}: {folder} has {ADAPTER}, an adapter of another model. Merge it into its model first.")
    for file in sorted(folder.glob("*config.json")):
        for name, value in _settings(read_json(file)):
            wanted = CODE.get(name) if value else None
            if name.endswith(KERNELS) and value not in (None, *TORCH_KERNELS):
                wanted = "kernels"
            if wanted:
                raise UserError(
                    f"{key}: {file} asks for {wanted} ({name}), and vidlab runs no code that a model's folder names. "
                    "Take a model that the library itself builds, in whole precision; or, if it does without, delete "
                    "the setting."
                )
            if LAYERS in name and isinstance(value, int) and value > MOST_LAYERS:
                raise UserError(f"{key}: {file} says {name}={value}, and no model has so many. Fetch it again.")


def _settings(content: Any) -> Iterator[tuple[str, Any]]:
    """Every setting, at any depth."""
    waiting = [content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield from node.items()
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file of settings, compared with its checksum where it has one.

    Raises:
        UserError: it is damaged or holds something else.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # the latter: brackets without end
        raise UserError(f"{file} is not JSON ({error}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold an object of settings.")
    try:
        return unsealed(content)
    except DamagedError as error:
        raise UserError(f"{file} is damaged: {error}. Fetch it again, or export the run again.") from None


@contextmanager
def without_bars() -> Iterator[None]:
    """Within it transformers draws no progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
