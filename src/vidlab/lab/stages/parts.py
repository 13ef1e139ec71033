"""``init=parents``: a new model from the weights of one or several trained ones, each giving a declared part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vidlab.errors import UserError
from vidlab.lab.init import CheckpointSource, RunContext, position_notes, weight_adapter
from vidlab.training.module import ClipModule
from vidlab.training.video_diffusion import VideoDiffusion
from vidlab.training.warm_start import WarmStartReport, inherit

ALL, ALL_BUT_TEMPORAL, TEMPORAL = "all", "all_but_temporal_attention", "temporal_attention"
ALL_BUT_DISCRIMINATOR = "all_but_discriminator"
PARTS = (ALL, ALL_BUT_TEMPORAL, TEMPORAL, ALL_BUT_DISCRIMINATOR)
BACKBONE, DISCRIMINATOR = "backbone.", "discriminator."


@dataclass(frozen=True)
class FromParents:
    """Weights of trained runs, each of which gives a part of the model.

    What "temporal attention" is, the backbone declares (``BackboneSpec.temporal``). Where no parent gives it, as from
    an image model, it starts as drawn.

    Args:
        runs: a run folder, a checkpoint file or an MLflow run id, by the name of the parent.
        parts: ``all``, ``all_but_temporal_attention``, ``temporal_attention`` or, of an autoencoder whose adversary
            starts anew, ``all_but_discriminator``; by the same names.
        weights: ``ema`` or ``raw``.
        fresh: patterns of further names that may start as drawn where no parent has them.
        copies: prefix of names that no parent has, to the prefix of those they start as a copy of.

    Raises:
        UserError: another part, or names that differ.
    """

    runs: Mapping[str, str]
    parts: Mapping[str, str]
    weights: str = "ema"
    fresh: Sequence[str] = ()
    copies: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.runs or set(self.runs) != set(self.parts):
            raise UserError(f"init.parts names {sorted(self.parts)} and init.runs {sorted(self.runs)}: name the same.")
        for name, part in self.parts.items():
            if part not in PARTS:
                raise UserError(f"init.parts.{name}={part}: choose {' | '.join(PARTS)}.")

    def apply(self, module: ClipModule, around: RunContext) -> WarmStartReport:
        """Take every weight or raise."""
        temporal, parts = temporal_names(module), set(self.parts.values())
        if not temporal and parts & {TEMPORAL, ALL_BUT_TEMPORAL}:
            raise UserError("init.parts: this model declares no temporal attention; its parents can give all only.")
        if ALL_BUT_DISCRIMINATOR in parts and isinstance(module, VideoDiffusion):
            raise UserError(f"init.parts: a denoiser has no discriminator, which {ALL_BUT_DISCRIMINATOR} leaves out.")
        frozen, sources, notes = module.frozen_keys(), [], []
        for name, run in self.runs.items():
            source, config = CheckpointSource(run, self.weights).load(around, f"init.runs.{name}")
            kept = {n: w for n, w in source.weights.items() if n not in frozen and self._gives(name, n, temporal)}
            sources.append(replace(source, weights=kept))
            notes += position_notes(module, config)
        drawn = () if parts & {ALL, TEMPORAL} else tuple(sorted(temporal))
        anew = (f"{DISCRIMINATOR}*",) if ALL not in parts and ALL_BUT_DISCRIMINATOR in parts else ()
        fresh = (*self.fresh, *drawn, *anew)
        report = inherit(module, sources, fresh, self.copies, weight_adapter(module), module.inherited())
        return replace(report, notes=tuple(dict.fromkeys(notes)))

    def _gives(self, parent: str, name: str, temporal: frozenset[str]) -> bool:
        part = self.parts[parent]
        if part == ALL_BUT_DISCRIMINATOR:
            return not name.startswith(DISCRIMINATOR)
        return part == ALL or (name in temporal) == (part == TEMPORAL)


def temporal_names(module: ClipModule) -> frozenset[str]:
    """The parameters that the backbone of a module declares as temporal, by their full names."""
    if not isinstance(module, VideoDiffusion):
        return frozenset()
    return frozenset(BACKBONE + name for name in module.denoiser.temporal_parameters())
