"""Sizes that a published folder names in its config.json need not be typed again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from vidlab.autoencoders.base import Autoencoder
from vidlab.lab.cli.hydra_main import locate_target
from vidlab.layers.layouts import LayerPlan, TokenLayout

BACKBONE = ("width", "depth", "heads", "patch", "rope_scale", "layouts")


def take_published_sizes(cfg: DictConfig, typed: Sequence[str]) -> None:
    """Set the sizes of the denoiser that ``init.path`` names, and of the autoencoder that ``autoencoder.path`` names.

    What the command line says stays, and is refused later where no weights have that size.

    Args:
        cfg: of a training, changed in place: it is recorded with its sizes, which then do not depend on the folder.
        typed: the command line, words such as ``model.backbone.width=48``.

    Raises:
        UserError: a ``config.json`` that is damaged or of something else.
    """
    keys = [word.lstrip("+").partition("=")[0] for word in typed]
    _denoiser(cfg, keys)
    _autoencoder(cfg, keys)


def _denoiser(cfg: DictConfig, typed: Sequence[str]) -> None:
    from vidlab.backbones.open_sora_plan_config import CONFIG, model_settings, read_config

    init, model = cfg.get("init"), cfg.get("model")
    if not init or not model or not init.get("path") or not _is(init, "vidlab.lab.init.OpenSoraPlanRelease"):
        return
    folder = Path(str(init.path)).expanduser()
    if not (folder / CONFIG).is_file() or not _is(model.backbone, "vidlab.backbones.open_sora_plan.OpenSoraPlan"):
        return
    found = model_settings(read_config(folder))
    found["layouts"] = _as_config(found["layouts"])
    _set(cfg.model.backbone, {name: found[name] for name in BACKBONE}, typed, "model.backbone")
    if "model.token" not in typed and "token" in model:
        model.token = None  # the patch is that of the release


def _autoencoder(cfg: DictConfig, typed: Sequence[str]) -> None:
    autoencoder = cfg.get("autoencoder")
    if not autoencoder or not autoencoder.get("path"):
        return
    kind = locate_target(autoencoder._target_, "autoencoder")
    if isinstance(kind, type) and issubclass(kind, Autoencoder):
        sizes = kind.published_settings(Path(str(autoencoder.path)).expanduser())
        _set(autoencoder, sizes, typed, "autoencoder")


def _set(node: DictConfig, values: Mapping[str, Any], typed: Sequence[str], prefix: str) -> None:
    with open_dict(node):
        for name, value in values.items():
            key = f"{prefix}.{name}"
            if not any(one == key or one.startswith(f"{key}.") for one in typed):
                node[name] = list(value) if isinstance(value, tuple) else value


def _is(node: DictConfig, target: str) -> bool:
    return str(node.get("_target_")) == target


def _as_config(plan: LayerPlan) -> DictConfig:
    cycle = [_node(layout) for layout in plan.cycle]
    return OmegaConf.create(_node(plan) | {"cycle": cycle})


def _node(part: LayerPlan | TokenLayout) -> dict[str, Any]:
    target = {"_target_": f"{type(part).__module__}.{type(part).__qualname__}"}
    return target | {name: value for name, value in vars(part).items() if name != "cycle"}
