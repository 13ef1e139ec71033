"""Prompts that a refiner expands before a pipeline reads them, and their way into what is generated."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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
