"""What a run trained as safetensors and JSON: ``python -m vidlab.lab.export <run> <folder>``.

An Open-Sora Plan denoiser and a WF-VAE are written as their authors publish theirs, with their names, shards and
``config.json``; any other denoiser as one file of weights. Beside a denoiser stands the rest of what makes a video:
``vidlab.json`` with the settings of the run, a text encoder that was trained, and what came from local folders. What
has a name everywhere (a hub id, ``asset:minilm``) is kept by its name. ``generate.py checkpoint=<folder>`` reads it.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vidlab import __version__
from vidlab.autoencoders.base import Autoencoder
from vidlab.backbones.open_sora_plan_release import STEM, write_release
from vidlab.command_line import command, exit_code, setting
from vidlab.digests import sealed
from vidlab.errors import UserError
from vidlab.files import folder_made_aside, write_json
from vidlab.lab.exported import AUTOENCODER, FOLDERS, FORMAT, TEXT, TRAINED
from vidlab.lab.runs.resolve import EXPORT, resolve_run
from vidlab.lab.runs.run_folder import RUNS
from vidlab.lab.trusted_config import Allowed, stored_settings, trained_config
from vidlab.tensors import save_tensors
from vidlab.text.pretrained import FILES
from vidlab.training.checkpoint_io import load_checkpoint
from vidlab.training.video_diffusion import VideoDiffusion


@dataclass(frozen=True)
class Origin:
    """Where exported weights come from.

    Args:
        settings: the training configuration.
        weights: ``ema``, averaged, or ``raw``.
        step: optimizer steps.
    """

    settings: Mapping[str, Any]
    weights: str = "ema"
    step: int = 0


def export(module: VideoDiffusion, folder: Path, origin: Origin) -> dict[str, str]:
    """Write everything of a loaded module that makes a video.

    Args:
        module: with the weights to write.
        folder: made if it is not there; must not hold an export yet.
        origin: where they come from.

    Returns:
        For a person: what became of each part.

    Raises:
        UserError: the folder already holds weights, or a part that the format cannot hold.
    """
    _refuse_weights(folder)
    with folder_made_aside(folder) as aside:
        published = module.denoiser.spec.released_as
        if published is not None:
            module.denoiser.write_released(aside)
            told = f"as {published} is published, whose readers take no notice of the parts below"
        else:
            frozen = module.denoiser.frozen_keys()
            weights = {name: value for name, value in module.denoiser.state_dict().items() if name not in frozen}
            write_release(weights, aside)
            told = f"{STEM}*, a {type(module.denoiser).__name__}"
            told += ", what was trained of it; its frozen part by its name" if frozen else ""
        parts = {"denoiser": told}
        parts |= module.denoiser.write_companions(aside)
        parts["text encoder"] = _write_text_encoder(module, aside, origin.settings)
        parts["autoencoder"] = _write_autoencoder(module.autoencoder, aside, origin.settings)
        parts["the rest"] = f"{EXPORT}: objective, sampler, guidance, conditioning, tokenizer, sizes"
        parts["left out"] = ", ".join(["optimizer, data", *(f"losses.{name}" for name in module.regularizers.terms)])
        content = {"format": FORMAT, "vidlab": __version__, "weights": origin.weights, "step": origin.step}
        settings = _with_names(origin.settings, aside)
        write_json(aside / EXPORT, sealed({**content, "settings": settings}), indent=1)
    return parts


def _refuse_weights(folder: Path) -> None:
    there = [path.name for path in sorted(folder.glob(f"{STEM}*"))]
    there += [name for name in (EXPORT, *sorted(set(FOLDERS.values()))) if (folder / name).exists()]
    if there:
        raise UserError(f"{folder} already holds weights; choose another folder, or remove {', '.join(there)} there.")


def _write_text_encoder(module: VideoDiffusion, folder: Path, settings: Mapping[str, Any]) -> str:
    """The trained weights, or the files of a frozen one that has no name beyond this machine."""
    trained = _trained(module)
    if trained:
        save_tensors(trained, _made(folder / TEXT) / TRAINED)
        return f"{TEXT}/{TRAINED}, trained with the denoiser"
    part = settings.get("text_encoder") or {}
    told = f"by its name, {part.get('path')}" if part.get("path") else "no weights, by its settings"
    for key, name in ((key, name) for (group, key), name in FOLDERS.items() if group == "text_encoder"):
        place = Path(str(part.get(key) or "")).expanduser()
        if part.get(key) and place.is_dir():
            for pattern in FILES:
                for file in sorted(place.glob(pattern)):
                    shutil.copyfile(file, _made(folder / name) / file.name)
            told = f"{name}/, a copy of {place}"
    return told


def _trained(module: VideoDiffusion) -> dict[str, Tensor]:
    """Weights beside the denoiser's that videos depend on, without their prefix.

    Raises:
        UserError: they are of another part than the text encoder.
    """
    prefix, frozen = "text_encoder.", module.frozen_keys()
    known = ("backbone.", "regularizer_modules.", prefix)
    state = {name: value for name, value in module.state_dict().items() if name not in frozen}
    other = [name for name in state if not name.startswith(known)]
    if other:
        raise UserError(f"{other[0]} was trained too, and an export has no place for it. Keep the checkpoint.")
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _write_autoencoder(autoencoder: Autoencoder, folder: Path, settings: Mapping[str, Any]) -> str:
    form = autoencoder.exported_format()
    if form is not None:
        form.write(folder / AUTOENCODER)
        return f"{AUTOENCODER}/, {form.told}"
    if not autoencoder.state_dict():
        return f"no weights, by its settings ({type(autoencoder).__name__})"
    path = str((settings.get("autoencoder") or {}).get("path") or "")
    if not path:
        raise UserError(f"autoencoder: the weights of a {type(autoencoder).__name__} have no form to be exported in.")
    return f"by its name, {path}, which must be there for whoever reads the export"


def _with_names(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings with folders of the export by their names, and not by where they were on this machine."""
    found = dict(settings)
    for (group, key), name in FOLDERS.items():
        part = found.get(group)
        if isinstance(part, Mapping) and part.get(key) and (folder / name).is_dir():
            found[group] = {**part, key: name}
    return found


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def export_autoencoder(autoencoder: Autoencoder, folder: Path) -> dict[str, str]:
    """Write an autoencoder; returns, for a person, what became of it.

    Raises:
        UserError: it is of a kind that has no published form, or the folder already holds weights.
    """
    form = autoencoder.exported_format()
    if form is None:
        raise UserError(f"The run trained a {type(autoencoder).__name__}, which declares no form to be exported in.")
    _refuse_weights(folder)
    with folder_made_aside(folder) as aside:
        form.write(aside)
    parts = {"autoencoder": f"{form.told}, latent scale and shift included"}
    if form.left_out:
        parts["left out"] = "; ".join(f"{name}, {why}" for name, why in form.left_out.items())
    return parts


def export_motion_adapter(module: VideoDiffusion, folder: Path) -> dict[str, str]:
    """Write the temporal modules of a trained ``model=harivo`` as a MotionAdapter of diffusers; returns what became.

    Raises:
        UserError: another model, a folder that already holds weights, or diffusers would compute something else.
    """
    from vidlab.backbones.harivo.model import HARIVO
    from vidlab.backbones.harivo.motion_adapter import write_motion_adapter

    if not isinstance(module.denoiser, HARIVO):
        raise UserError(f"--motion-adapter: the run trained a {type(module.denoiser).__name__}, not model=harivo.")
    _refuse_weights(folder)
    with folder_made_aside(folder) as aside:
        told = write_motion_adapter(module.denoiser, aside, module.clip_shape[0])
    return {"motion adapter": f"{told}; MotionAdapter.from_pretrained reads the folder"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vidlab.lab.export", description=main.__doc__)
    parser.add_argument("run", help="last, a run folder, a checkpoint file or an MLflow run id")
    parser.add_argument("folder", type=Path, help="where to write; must not hold weights yet")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema")
    parser.add_argument(
        "--motion-adapter", action="store_true", help="the temporal modules of model=harivo alone, for diffusers"
    )
    parser.add_argument("--name", default="vidlab", help="the experiment in which 'last' looks")
    parser.add_argument("--tracking-uri", default="sqlite:///mlflow.db")
    parser.add_argument("--allow", default="", help="your own classes that the run may name, separated by commas")
    return parser


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Export what a run trained as safetensors and JSON."""
    for line in _exported(_parser().parse_args(arguments)):
        print(line)


def _exported(found: argparse.Namespace) -> Iterator[str]:
    """Export, and say what was written and what reads it."""
    from vidlab.lab.evaluation.entries import trained_autoencoder
    from vidlab.lab.loading import LoadSettings, module_of

    checkpoint = resolve_run(found.run, RUNS, found.name, found.tracking_uri, key="run").checkpoint
    settings = LoadSettings(found.weights, found.tracking_uri)
    own = [name for name in found.allow.split(",") if name]
    state = load_checkpoint(checkpoint)
    trained = trained_config(state, checkpoint, Allowed.of(own, "--allow={}"))
    following = ""
    if trained.get("model") and found.motion_adapter:
        parts = export_motion_adapter(module_of(state, trained, checkpoint, settings), found.folder)
    elif trained.get("model"):
        module = module_of(state, trained, checkpoint, settings)
        origin = Origin(stored_settings(state["config"], checkpoint), found.weights, int(state.get("global_step", 0)))
        parts = export(module, found.folder, origin)
        words = [setting("checkpoint", found.folder), *(["weights=raw"] if found.weights == "raw" else [])]
        words += [setting("allow", own)] if own else []
        following = command("generate.py", *words, "prompt=a red square moving right")
    else:
        parts = export_autoencoder(trained_autoencoder(state, trained, checkpoint, found.weights), found.folder)
        following = command("evaluate.py", setting("autoencoders", [found.folder]))
    yield f"{checkpoint} ({found.weights}) -> {found.folder}"
    yield from (f"  {name:<13} {told}" for name, told in parts.items())
    if following:
        yield f"Next:\n  {following}"


if __name__ == "__main__":
    sys.exit(main())
