"""What a run trained as safetensors and JSON: ``python -m vidlab.lab.export <run> <folder>``.

An Open-Sora Plan denoiser and a WF-VAE are written as their authors publish theirs, with their names, shards and
``config.json``; any other denoiser as one file of weights beside the configuration it was trained with.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vidlab.autoencoders.base import Autoencoder
from vidlab.autoencoders.wfvae import WFVAE
from vidlab.autoencoders.wfvae_weights import export_weights
from vidlab.backbones.open_sora_plan import OpenSoraPlan
from vidlab.backbones.open_sora_plan_release import STEM, export_release, write_release
from vidlab.digests import sealed
from vidlab.errors import UserError
from vidlab.files import folder_made_aside, write_json
from vidlab.lab.run_folder import RUNS
from vidlab.lab.runs import resolve_run
from vidlab.lab.trusted_config import Allowed, stored_settings, trained_config
from vidlab.training.checkpoint_io import load_checkpoint
from vidlab.training.video_diffusion import VideoDiffusion


def export(module: VideoDiffusion, folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the denoiser of a loaded module.

    Args:
        module: with the weights to write.
        folder: made if it is not there; must not hold weights yet.
        settings: the training configuration, written as it is.

    Raises:
        UserError: the folder already holds weights.
    """
    _refuse_weights(folder)
    with folder_made_aside(folder) as aside:
        if isinstance(module.denoiser, OpenSoraPlan):
            export_release(module.denoiser, aside)
        else:
            write_release(module.denoiser.state_dict(), aside)
            write_json(aside / "config.json", sealed(settings), indent=1)


def _refuse_weights(folder: Path) -> None:
    if any(folder.glob(f"{STEM}*")):
        raise UserError(f"{folder} already holds weights; choose another folder, or remove {STEM}* there.")


def export_autoencoder(autoencoder: Autoencoder, folder: Path) -> None:
    """Write an autoencoder.

    Raises:
        UserError: it is of a kind that has no published form, or the folder already holds weights.
    """
    if not isinstance(autoencoder, WFVAE):
        raise UserError(f"The run trained a {type(autoencoder).__name__}; the one autoencoder written is WF-VAE.")
    _refuse_weights(folder)
    with folder_made_aside(folder) as aside:
        export_weights(autoencoder, aside)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export what a run trained as safetensors and JSON."""
    from vidlab.lab.evaluation.entries import trained_autoencoder
    from vidlab.lab.generate import module_of

    parser = argparse.ArgumentParser(prog="python -m vidlab.lab.export", description=main.__doc__)
    parser.add_argument("run", help="last, a run folder, a checkpoint file or an MLflow run id")
    parser.add_argument("folder", type=Path, help="where to write; must not hold weights yet")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema")
    parser.add_argument("--name", default="vidlab", help="the experiment in which 'last' looks")
    parser.add_argument("--tracking-uri", default="sqlite:///mlflow.db")
    parser.add_argument("--allow", default="", help="your own classes that the run may name, separated by commas")
    found = parser.parse_args(arguments)
    try:
        checkpoint = resolve_run(found.run, RUNS, found.name, found.tracking_uri, key="run").checkpoint
        settings = OmegaConf.create({"frames": None, "height": None, "width": None, "steps": None})
        settings.weights, settings.tracking_uri = found.weights, found.tracking_uri
        allowed = Allowed.of([name for name in found.allow.split(",") if name], "--allow={}")
        state = load_checkpoint(checkpoint)
        trained = trained_config(state, checkpoint, allowed)
        if trained.get("model"):
            module = module_of(state, trained, checkpoint, settings)
            export(module, found.folder, stored_settings(state["config"], checkpoint))
        else:
            export_autoencoder(trained_autoencoder(state, trained, checkpoint, found.weights), found.folder)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    print(f"{checkpoint} ({found.weights}) -> {found.folder}")


if __name__ == "__main__":
    main()
