"""The loop that turns noise into latents."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.clip import Conditions, DenoiserInput, DenoiserOutput, TextEmbedding
from vidlab.diffusion.objective import GaussianObjective
from vidlab.diffusion.parameterizations import Denoised
from vidlab.errors import UserError
from vidlab.sampling.guidance import Guidance
from vidlab.sampling.solvers import Solver

Latents = Float[Tensor, "B C T H W"]
Backbone = Callable[[DenoiserInput], DenoiserOutput]


@dataclass(frozen=True)
class Sampler:
    """Integrates from t = 1 (noise) to t = 0 (data).

    Steps are equal in u, and t = shift u / (1 + (shift - 1) u) (Esser et al. 2024, eq. 23): a shift above 1 takes more
    steps at high noise, where layout and colours are decided.

    Args:
        solver: how one step is made.
        steps: number of steps.
        shift: 1 spaces the steps evenly in t.

    Raises:
        UserError: fewer than one step, or a shift that is not positive.
    """

    solver: Solver
    steps: int = 32
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise UserError(f"sampler.shift={self.shift} must be positive; 1 spaces the steps evenly.")
        if self.steps < 1:
            raise UserError(f"sampler.steps={self.steps} must be at least 1.")

    def times(self) -> list[float]:
        """``steps + 1`` noise levels from 1 to 0."""
        u = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        return (self.shift * u / (1 + (self.shift - 1) * u)).tolist()

    @torch.no_grad()
    def sample(
        self,
        backbone: Backbone,
        objective: GaussianObjective,
        guidance: Guidance,
        noise: Latents,
        conditions: Mapping[str, Conditions],
        progress: Callable[[int, int], None] | None = None,
    ) -> Latents:
        """Clean latents from standard normal noise.

        Args:
            backbone: the denoiser.
            objective: the schedule and parameterisation it was trained with.
            guidance: combines predictions under the named ``conditions``.
            noise: (B, C, T, H, W) standard normal.
            conditions: ``"text"`` and, for guidance, ``"null"``; B rows each.
            progress: called with (steps done, steps) after each step.
        """
        denoise = GuidedDenoiser(backbone, objective, guidance, conditions)
        times = self.times()
        path = objective.schedule.coefficients(noise.new_ones(noise.shape[0])).like(noise)
        z = path.sigma * noise
        for done, (t, s) in enumerate(itertools.pairwise(times), start=1):
            z = self.solver.step(z, t, s, denoise, objective.schedule)
            if progress is not None:
                progress(done, self.steps)
        return z


@dataclass(frozen=True)
class GuidedDenoiser:
    """Evaluates the backbone under all conditions guidance needs, in one batch, and combines the predictions."""

    backbone: Backbone
    objective: GaussianObjective
    guidance: Guidance
    conditions: Mapping[str, Conditions]

    def __call__(self, z: Latents, t: float) -> Denoised:
        """x0 and noise at level t, in float32."""
        names = self.guidance.needs(t)
        missing = [name for name in names if name not in self.conditions]
        if missing:
            raise ValueError(f"guidance needs conditions {missing}, given are {sorted(self.conditions)}")
        joint = concatenate([self.conditions[name] for name in names])
        levels = z.new_full((len(names) * z.shape[0],), t)
        input = DenoiserInput(
            latents=z.repeat(len(names), 1, 1, 1, 1),
            t=levels,
            embedded_t=self.objective.schedule.embedded(levels),
            text=joint.text,
            history=joint.history,
            controls=joint.controls,
            micro=joint.micro,
        )
        predictions = self.backbone(input).prediction.float().chunk(len(names))
        combined = self.guidance.combine(dict(zip(names, predictions, strict=True)), t)
        level = levels[: z.shape[0]]
        single = DenoiserInput(z, t=level, embedded_t=self.objective.schedule.embedded(level))
        return self.objective.denoised(DenoiserOutput(prediction=combined), single)


def concatenate(conditions: list[Conditions]) -> Conditions:
    """Stack conditions along the batch, padding texts to a common length.

    Raises:
        ValueError: history, controls or micro-conditions, which no sampler combines yet; text in some conditions only.
    """
    if len(conditions) == 1:
        return conditions[0]
    if any(c.history or c.controls is not None or c.micro for c in conditions):
        raise ValueError("only text conditions can be evaluated in one batch")
    texts = [c.text for c in conditions if c.text is not None]
    if 0 < len(texts) < len(conditions):
        raise ValueError("some conditions have text and some have none: use an empty caption for the null prompt")
    return Conditions(text=concatenate_texts(texts) if texts else None)


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
