"""Where the weights of a new run come from: the choices of the group ``init``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from vidlab.errors import UserError
from vidlab.lab.exported import load_stored
from vidlab.lab.runs.resolve import resolve_run
from vidlab.lab.runs.run_folder import RUNS
from vidlab.lab.trusted_config import stored_settings
from vidlab.tensors import refuse_non_finite, refuse_other_shapes
from vidlab.training.checkpoint_io import BESIDE
from vidlab.training.module import ClipModule
from vidlab.training.video_diffusion import VideoDiffusion
from vidlab.training.warm_start import Source, WarmStartReport, inherit


@dataclass(frozen=True)
class RunContext:
    """What resolving a run needs: the experiment in which ``last`` looks, and the MLflow store."""

    experiment: str
    tracking_uri: str | None


@runtime_checkable
class Initializer(Protocol):
    """Fills a built module before training; returns None where nothing was inherited."""

    def apply(self, module: ClipModule, around: RunContext) -> WarmStartReport | None:
        """Set weights in place."""
        ...


@dataclass(frozen=True)
class FreshWeights:
    """Weights as they are drawn."""

    def apply(self, module: ClipModule, around: RunContext) -> WarmStartReport | None:
        """Nothing to do."""
        return None


@dataclass(frozen=True)
class CheckpointSource:
    """Weights of one checkpoint.

    Args:
        run: ``last``, a run folder, a checkpoint file or an MLflow run id.
        weights: ``ema`` or ``raw``.
        keys: patterns of the names taken from it.

    Raises:
        UserError: ``weights`` is neither.
    """

    run: str
    weights: str = "ema"
    keys: Sequence[str] = ("*",)

    def __post_init__(self) -> None:
        if self.weights not in ("ema", "raw"):
            raise UserError(f"init.weights={self.weights}: choose ema or raw.")

    def load(self, around: RunContext, key: str) -> tuple[Source, Mapping[str, Any]]:
        """The weights, and the configuration they were trained with.

        Raises:
            UserError: no such run, or averaged weights asked for and none kept.
        """
        found = resolve_run(self.run, RUNS, around.experiment, around.tracking_uri, key=key, exports=True)
        state = load_stored(found.checkpoint, self.weights)
        weights: dict[str, Tensor] = dict(state["state_dict"])
        if self.weights == "ema" and not state.get("averaged"):
            if not state.get("ema"):
                raise UserError(f"{found.checkpoint} holds no averaged weights. Use init.weights=raw.")
            refuse_other_shapes(state["ema"], weights, f"{found.checkpoint}: ema", BESIDE)
            weights |= state["ema"]
        refuse_non_finite(weights, str(found.checkpoint), BESIDE)
        config = stored_settings(state["config"], found.checkpoint) if "config" in state else {}
        return Source(str(found.checkpoint), weights, tuple(self.keys)), config


@dataclass(frozen=True)
class FromRuns:
    """Weights of one or more trained runs; the first that has a name gives it.

    One source of the same names serves full 3D -> Skiparse, and T2I -> T2V where the backbone inflates its patch
    embedding. Two sources with ``keys`` serve STIV's T2V-512: temporal attention from T2V-256, the rest from T2I-512.

    Args:
        sources: by a name of your choice, asked in order.
        fresh: patterns of names that may start as drawn where no source has them.
        copies: prefix of names that no source has, to the prefix of those they start as a copy of.
    """

    sources: Mapping[str, CheckpointSource]
    fresh: Sequence[str] = ()
    copies: Mapping[str, str] = field(default_factory=dict)

    def apply(self, module: ClipModule, around: RunContext) -> WarmStartReport:
        """Take every weight or raise."""
        loaded = [trained.load(around, f"init.{name}") for name, trained in self.sources.items()]
        frozen = module.frozen_keys()
        sources = [
            replace(source, weights={k: v for k, v in source.weights.items() if k not in frozen})
            for source, _ in loaded
        ]
        report = inherit(module, sources, self.fresh, self.copies, weight_adapter(module), module.inherited())
        notes = [note for _, config in loaded for note in position_notes(module, config)]
        return replace(report, notes=tuple(notes))


def from_run(
    run: str,
    weights: str = "ema",
    keys: Sequence[str] = ("*",),
    fresh: Sequence[str] = (),
    copies: Mapping[str, str] | None = None,
) -> FromRuns:
    """One run gives everything; arguments as in ``CheckpointSource`` and ``FromRuns``."""
    return FromRuns({"run": CheckpointSource(run, weights, keys)}, fresh, copies or {})


def merged(
    image_run: str,
    temporal_run: str,
    temporal_keys: Sequence[str],
    weights: str = "ema",
    fresh: Sequence[str] = (),
) -> FromRuns:
    """Temporal attention from one run, the rest from another: STIV's T2V-512 from T2V-256 and T2I-512."""
    sources = {
        "temporal_run": CheckpointSource(temporal_run, weights, temporal_keys),
        "image_run": CheckpointSource(image_run, weights),
    }
    return FromRuns(sources, fresh)


def weight_adapter(module: ClipModule) -> Any:
    """Gives weights of an image model the shape that the denoiser of a module needs; None where there is none."""
    if not isinstance(module, VideoDiffusion):
        return None

    def adapt(name: str, weight: Tensor) -> Tensor | None:
        prefix = "backbone."
        return module.denoiser.inflated(name[len(prefix) :], weight) if name.startswith(prefix) else None

    return adapt


def position_notes(module: ClipModule, config: Mapping[str, Any]) -> list[str]:
    """Say when a source was trained on another size, and which setting interpolates its positions."""
    if not isinstance(module, VideoDiffusion):
        return []
    data = config.get("data")
    sizes = [data.get(name) for name in ("frames", "height", "width")] if isinstance(data, Mapping) else []
    trained = [size for size in sizes if isinstance(size, int) and size > 0]
    here = module.clip_shape
    if len(trained) != len(here) or list(here) == trained:
        return []
    scale = [round(new / old, 4) for new, old in zip(here, trained, strict=True)]
    return [
        f"trained on clips of {'x'.join(map(str, trained))}, this run has {'x'.join(map(str, here))}: "
        f"model.backbone.rope_scale={scale} interpolates the positions, [1,1,1] extrapolates them"
    ]


@dataclass(frozen=True)
class OpenSoraPlanRelease:
    """The denoiser of a released Open-Sora Plan v1.3 checkpoint (a folder of safetensors, original names).

    Args:
        path: the folder with ``diffusion_pytorch_model*.safetensors``, or one such file.
        fresh: patterns of names that may start as drawn, for the image-conditioned model from text-to-video weights.
        copies: prefix of names the release does not have, to the prefix of those they copy, for that model.

    Raises:
        UserError: no path.
    """

    path: str | None
    fresh: Sequence[str] = ()
    copies: Mapping[str, str] = field(default_factory=dict)

    def apply(self, module: ClipModule, around: RunContext) -> WarmStartReport:
        """Take every weight of the backbone or raise."""
        from vidlab.backbones.open_sora_plan_config import RELEASE

        if not self.path:
            raise UserError("init.path is not set: give the folder of the released checkpoint, init.path=<folder>.")
        if not isinstance(module, VideoDiffusion) or module.denoiser.pretrained.spec.released_as != RELEASE:
            raise UserError("init=open_sora_plan fills an Open-Sora Plan denoiser: use model=paper/open_sora_plan.")
        folder = Path(self.path).expanduser()
        denoiser = module.denoiser.pretrained
        found = denoiser.read_released(folder)
        names = {name for name, _ in denoiser.named_parameters()}
        report = inherit(denoiser, [Source(str(folder), found.weights)], self.fresh, self.copies, names=names)
        return replace(report, notes=found.notes)


@dataclass(frozen=True)
class MambaFromAttention:
    """State-space mixers that begin as the attention of a trained run; all that has a counterpart is taken with them.

    A, dt, the convolution and the second branch have none and stay as drawn, and so do registers and the temporal
    branch where the run has no such thing (``vidlab.backbones.mmdim.from_attention``).

    Args:
        source: the run, of ``model=mmdim mixer=attention`` or ``model=full3d``.
        fresh: patterns of names that may start as drawn where the run has nothing for them.
    """

    source: CheckpointSource
    fresh: Sequence[str] = ()

    def apply(self, module: ClipModule, around: RunContext) -> WarmStartReport:
        """Take every weight that ``fresh`` does not excuse, or raise.

        Raises:
            UserError: another model, a run without attention, or a weight that neither is there nor may be fresh.
        """
        from vidlab.backbones.mmdim import MMDiM
        from vidlab.backbones.mmdim.from_attention import Taken, from_attention

        if not isinstance(module, VideoDiffusion) or not isinstance(module.denoiser, MMDiM):
            raise UserError("init=mamba_from_attention fills a diffusion Mamba: use model=mmdim.")
        source, config = self.source.load(around, "init.run")
        frozen = module.frozen_keys()
        given = {n: w for n, w in source.weights.items() if source.get(n) is not None and n not in frozen}
        inside = {name.removeprefix(BACKBONE): w for name, w in given.items() if name.startswith(BACKBONE)}
        found = {BACKBONE + name: taken for name, taken in from_attention(module.denoiser, inside).items()}
        found |= {name: Taken(weight, (name,)) for name, weight in given.items() if not name.startswith(BACKBONE)}
        made = Source(source.name, {name: taken.weight for name, taken in found.items()})
        report = inherit(module, [made], self.fresh)
        return _told(report, found, source, position_notes(module, config))


BACKBONE = "backbone."


def _told(report: WarmStartReport, found: Mapping[str, Any], source: Source, notes: Sequence[str]) -> WarmStartReport:
    """The report in the names of the run: what was renamed or joined is copied, what nothing took is unused."""
    names = {name: tuple(BACKBONE + o if name.startswith(BACKBONE) else o for o in one.origins)
             for name, one in found.items()}  # fmt: skip
    taken = report.taken[source.name]
    straight = tuple(name for name in taken if names[name] == (name,) and not found[name].part)
    copied = [
        f"{name}{found[name].part and f' ({found[name].part})'} <- {' + '.join(names[name])}"
        for name in taken if name not in straight
    ]  # fmt: skip
    used = {origin for name in taken for origin in names[name]}
    return replace(
        report,
        taken={source.name: straight},
        copied=tuple(copied),
        unused=tuple(f"{source.name}: {name}" for name in source.weights if name not in used),
        notes=tuple(notes),
    )


def mamba_from_attention(
    run: str, weights: str = "ema", keys: Sequence[str] = ("*",), fresh: Sequence[str] = ()
) -> MambaFromAttention:
    """One run gives the attention; arguments as in ``CheckpointSource`` and ``MambaFromAttention``."""
    return MambaFromAttention(CheckpointSource(run, weights, keys), fresh)
