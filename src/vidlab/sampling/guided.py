"""A denoiser under guidance: all predictions guidance asks for, in as few backbone calls as memory allows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidlab.clip import Conditions, Controls, DenoiserInput, History, TextEmbedding
from vidlab.diffusion.objective import Backbone
from vidlab.diffusion.parameterizations import Denoised, Parameterization
from vidlab.diffusion.schedules import Schedule
from vidlab.sampling.guidance import Guidance
from vidlab.sampling.history_cache import HistoryCache
from vidlab.sampling.video_guidance import VideoGuidance
from vidlab.structure import concatenate_signals

Latents = Float[Tensor, "B C T H W"]


@dataclass(frozen=True)
class GuidedDenoiser:
    """Evaluates the backbone under all conditions guidance needs and combines the predictions.

    Args:
        backbone: the denoiser.
        schedule: the path it was trained on.
        parameterization: what it predicts.
        guidance: combines predictions under the named ``conditions``.
        conditions: by the name of the pass, B rows each.
        max_batch: most rows in one backbone call; None takes all passes in one.
    """

    backbone: Backbone
    schedule: Schedule
    parameterization: Parameterization
    guidance: Guidance
    conditions: Mapping[str, Conditions]
    max_batch: int | None = None

    def __call__(self, z: Latents, t: float) -> Denoised:
        """x0 and noise at level t, in float32.

        Raises:
            ValueError: guidance needs a condition that is missing.
        """
        names = self.guidance.needs(t)
        missing = [name for name in names if name not in self.conditions]
        if missing:
            raise ValueError(f"guidance needs conditions {missing}, given are {sorted(self.conditions)}")
        levels = z.new_full((z.shape[0],), t)  # (B,)
        single = DenoiserInput(z, t=levels, embedded_t=self.schedule.embedded(levels))
        asked = (*names, *self._besides(names))
        passes = [self.conditions[name] for name in asked]
        predictions = dict(zip(asked, predict(self.backbone, single, passes, self.max_batch), strict=True))
        known = self._stand_in(single, predictions)
        predictions = {name: predictions[name] for name in names}
        if known is not None:
            predictions = {name: torch.where(known.mask, known.value, p) for name, p in predictions.items()}
        combined = self.guidance.combine(predictions, t)
        if known is not None:
            combined = torch.where(known.mask, known.value, combined)
        latents = single.latents.float()
        path = self.schedule.coefficients(levels.float()).like(latents)
        denoised = self.parameterization.denoised(combined, latents, path)
        if not isinstance(self.guidance, VideoGuidance):
            return denoised
        corrected = self.guidance.corrected(denoised, path)
        if known is None:
            return corrected
        parts = ((known.mask, before, after) for before, after in (
            (denoised.x0, corrected.x0), (denoised.epsilon, corrected.epsilon),
        ))  # fmt: skip
        return Denoised(*(torch.where(*part) for part in parts))

    def _besides(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """A pass that does not see the given frames, where guidance asks for one at other levels but not at this.

        Its own state of these frames has to be carried along until then.
        """
        known = self.conditions["full"].known if "full" in names else None
        if known is None or known.follows_image or any(self.conditions[name].known is None for name in names):
            return ()
        return tuple(sorted(name for name in self.guidance.passes if self.conditions[name].known is None))[:1]

    def _stand_in(self, single: DenoiserInput, predictions: Mapping[str, Latents]) -> "_StandIn | None":
        """The prediction at given positions, where that of a pass that saw them means nothing: it was never trained."""
        known = self.conditions["full"].known if "full" in predictions else None
        if known is None:
            return None
        text_only = [p for name, p in predictions.items() if self.conditions[name].known is None]
        if text_only and not known.follows_image:
            return _StandIn(known.mask > 0, text_only[0])
        path = self.schedule.coefficients(single.t).like(single.latents)
        x0 = known.latents.to(single.latents.dtype)
        epsilon = (single.latents - path.alpha * x0) / path.sigma
        return _StandIn(known.mask > 0, self.parameterization.target(x0, epsilon, path).float())


@dataclass(frozen=True)
class _StandIn:
    mask: Bool[Tensor, "B 1 T #H #W"]
    value: Latents


def predict(
    backbone: Backbone,
    single: DenoiserInput,
    passes: Sequence[Conditions],
    max_batch: int | None = None,
    cache: HistoryCache | None = None,
) -> tuple[Latents, ...]:
    """Predictions for the same noisy latents under several conditions, in float32, in as few backbone calls as fit.

    Args:
        backbone: the denoiser.
        single: noisy latents and their levels, B rows; its own conditions are not looked at.
        passes: of each pass, B rows. Those of one call have histories of the same frames and sizes.
        max_batch: most rows in one backbone call; None takes all passes in one.
        cache: keeps what the backbone makes of text and history, which are those of its earlier calls.
    """
    joint = concatenate(passes)
    latents = torch.cat([c.known.put_into(single.latents) if c.known else single.latents for c in passes])
    input = DenoiserInput(
        latents=latents,  # (passes B, C, T, H, W)
        t=torch.cat([single.t] * len(passes)),
        embedded_t=torch.cat([single.embedded_t] * len(passes)),
        text=joint.text,
        history=joint.history,
        controls=joint.controls,
        micro=joint.micro,
        structure=joint.structure,
    )
    rows = len(latents) if max_batch is None else max_batch
    parts = [_rows(input, start, start + rows) for start in range(0, len(latents), rows)]  # up to ``rows`` rows each
    if cache is not None:
        parts = [cache.put_into(part, number) for number, part in enumerate(parts)]
    return torch.cat([backbone(part).prediction.float() for part in parts]).chunk(len(passes))


def _rows(input: DenoiserInput, start: int, stop: int) -> DenoiserInput:
    part = slice(start, stop)
    text, controls = input.text, input.controls
    return DenoiserInput(
        latents=input.latents[part],
        t=input.t[part],
        embedded_t=input.embedded_t[part],
        text=None if text is None else TextEmbedding(text.tokens[part], text.mask[part], text.pooled[part]),
        history=tuple(History(past.latents[part], past.frame_index) for past in input.history),
        controls=None if controls is None else Controls(controls.channels[part], controls.mask[part]),
        micro={name: value[part] for name, value in input.micro.items()},
        structure=None if input.structure is None else input.structure.rows(part),
    )


def concatenate(conditions: Sequence[Conditions]) -> Conditions:
    """Stack text, history, controls and micro-conditions along the batch, padding texts to a common length.

    Raises:
        ValueError: a kind of condition that only some have, or histories of other frames or sizes.
    """
    texts = [c.text for c in conditions if c.text is not None]
    if 0 < len(texts) < len(conditions):
        raise ValueError("some conditions have text and some have none: use an empty caption for the null prompt")
    controls = [c.controls for c in conditions if c.controls is not None]
    if 0 < len(controls) < len(conditions):
        raise ValueError("some conditions have controls and some have none: give controls in which nothing is known")
    names = {frozenset(c.micro) for c in conditions}
    if len(names) != 1:
        raise ValueError(f"conditions have different micro-conditions: {sorted(map(sorted, names))}")
    return Conditions(
        text=concatenate_texts(texts) if texts else None,
        history=concatenate_histories([c.history for c in conditions]),
        controls=concatenate_controls(controls) if controls else None,
        micro={name: torch.cat([c.micro[name] for c in conditions]) for name in conditions[0].micro},
        structure=concatenate_signals([c.structure for c in conditions]),
    )


def concatenate_histories(histories: Sequence[tuple[History, ...]]) -> tuple[History, ...]:
    """Stack histories along the batch, part by part.

    Raises:
        ValueError: they are not of the same frames and sizes.
    """
    sizes = {tuple((*part.latents.shape[1:], len(part.frame_index)) for part in history) for history in histories}
    if len(sizes) != 1:
        raise ValueError(f"conditions have histories of different sizes, evaluate them apart: {sorted(sizes)}")
    return tuple(
        History(torch.cat([part.latents for part in parts]), parts[0].frame_index)
        for parts in zip(*histories, strict=True)
    )


def concatenate_controls(controls: list[Controls]) -> Controls:
    """Stack controls along the batch."""
    return Controls(torch.cat([c.channels for c in controls]), torch.cat([c.mask for c in controls]))


def concatenate_texts(texts: list[TextEmbedding]) -> TextEmbedding:
    """Stack text embeddings along the batch; shorter ones are padded with masked zeros."""
    longest = max(text.tokens.shape[1] for text in texts)
    pads = [longest - text.tokens.shape[1] for text in texts]
    pad = torch.nn.functional.pad
    return TextEmbedding(
        tokens=torch.cat([pad(x.tokens, (0, 0, 0, n)) for x, n in zip(texts, pads, strict=True)]),
        mask=torch.cat([pad(x.mask, (0, n)) for x, n in zip(texts, pads, strict=True)]),
        pooled=torch.cat([x.pooled for x in texts]),
    )
