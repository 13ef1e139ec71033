"""The protocol of samplers, and which objective, sampler and guidance belong together."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from vidlab.clip import Conditions
from vidlab.diffusion.objective import Backbone, Objective
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG
from vidlab.sampling.guidance import Guidance
from vidlab.sampling.video_guidance import check_video_guidance

Latents = Float[Tensor, "B C T H W"]
Progress = Callable[[int, int], None]

# What pipelines can tell a model: prompt and frames, the frames with an empty prompt, an empty prompt alone.
CONDITIONS = ("full", "image", "null")


@runtime_checkable
class Sampler(Protocol):
    """Turns noise into latents with a trained backbone: all frames at once, or one after another with their history.

    ``process`` is that of the objectives whose corruption it undoes (see ``Objective``). ``steps`` is an argument of
    every sampler that ``dataclasses.replace`` can change.
    """

    process: ClassVar[str]

    @property
    def steps(self) -> int:
        """Steps from noise to data, or of each part of the way where it has several."""
        ...

    @property
    def name(self) -> str:
        """A word for tables, such as that of its solver."""
        ...

    def check(self, objective: Objective) -> None:
        """Refuse settings that an objective of the same process cannot be sampled with.

        Raises:
            UserError: naming them.
        """
        ...

    def passes(self, guidance: Guidance) -> frozenset[str]:
        """Names of the ``conditions`` that ``sample`` reads with this guidance."""
        ...

    def sample(
        self,
        backbone: Backbone,
        objective: Objective,
        guidance: Guidance,
        noise: Latents,
        conditions: Mapping[str, Conditions],
        progress: Progress | None = None,
        draw: KeyedRNG | None = None,
    ) -> Latents:
        """Clean latents from standard normal noise.

        Args:
            backbone: the denoiser.
            objective: the one it was trained for.
            guidance: combines predictions under the named ``conditions``.
            noise: (B, C, T, H, W) standard normal; the latents have its shape.
            conditions: by the name of the pass, B rows each; those of ``passes`` at least. Known latents, and those of
                a history, are part of the result or of what it follows.
            progress: called with (steps done, steps) after each step.
            draw: further random numbers of the B videos.

        Raises:
            ValueError: a condition or ``draw`` is missing.
            UserError: settings that ``check`` refuses.
        """
        ...


def check_belong(objective: Objective, sampler: Sampler, guidance: Guidance, takes_frames: bool = True) -> None:
    """Refuse an objective, a sampler and a guidance that do not belong together.

    Args:
        objective: what the model was trained for.
        sampler: what makes its latents.
        guidance: combines predictions.
        takes_frames: frames can be given to the model.

    Raises:
        UserError: naming the settings and what is allowed.
    """
    if sampler.process != objective.process:
        raise UserError(
            f"sampler={type(sampler).__name__} undoes the {sampler.process} process and "
            f"objective={type(objective).__name__} is trained for the {objective.process} process. Use a sampler of "
            f"the {objective.process} process, or an objective of the {sampler.process} process."
        )
    check_video_guidance(guidance, sampler.process)
    needed = sampler.passes(guidance)
    unknown = needed - frozenset(CONDITIONS)
    if unknown:
        raise UserError(
            f"guidance={type(guidance).__name__} combines passes under {', '.join(sorted(unknown))}, of which "
            f"sampler={type(sampler).__name__} knows nothing. It can combine {', '.join(CONDITIONS)}."
        )
    if "image" in needed and not takes_frames:
        raise UserError(
            f"guidance={type(guidance).__name__} needs a model that knows frames apart from the prompt. "
            "Use guidance=cfg, or train with conditioning=frame_replacement or conditioning=masked_video."
        )
    sampler.check(objective)
