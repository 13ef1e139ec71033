"""Prompts that a refiner expands before a pipeline reads them, and their way into what is generated."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from vidlab.errors import UserError
from vidlab.pipelines.generated import GeneratedVideo
from vidlab.text.refiner.refiner import PromptRefiner, RefinedPrompt


@dataclass(frozen=True)
class RefinedPrompts:
    """Prompts as the model reads them, and as they were typed.

    Args:
        prompts: in the order in which they were typed.
    """

    prompts: tuple[RefinedPrompt, ...]

    @classmethod
    def of(cls, refiner: PromptRefiner, prompts: Sequence[str]) -> "RefinedPrompts":
        """The prompts, expanded."""
        return cls(tuple(refiner.refine(prompts)))

    @property
    def texts(self) -> list[str]:
        """What the model reads."""
        return [one.refined for one in self.prompts]

    def marked(self, videos: Iterable[GeneratedVideo], num_videos: int) -> list[GeneratedVideo]:
        """Videos, ``num_videos`` of each prompt in order, with the prompts that were typed."""
        told = [one for one in self.prompts for _ in range(num_videos)]
        pairs = zip(videos, told, strict=True)
        return [replace(video, original=one.original, refiner=one.refiner) for video, one in pairs]


def chosen_refiner(
    refine: bool | PromptRefiner | str, own: PromptRefiner | None, device: torch.device
) -> PromptRefiner:
    """The refiner that ``refine`` asks for: True is a pipeline's ``own``, a text the folder of one, put on ``device``.

    Raises:
        UserError: True where there is none, or a folder that holds none.
    """
    found = own if refine is True else refine
    if isinstance(found, str):
        found = PromptRefiner.load(found, "refine").to(device)
    if not isinstance(found, PromptRefiner):
        raise UserError("refine=True: this pipeline has no refiner. Give the folder of one: refine='refiners/...'.")
    return found
