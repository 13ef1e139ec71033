"""A cache of keys, values and scan states of earlier frames, kept over the sampling steps of the current one."""

from dataclasses import dataclass, field, replace

from vidlab.backbones.base import VideoDenoiser
from vidlab.clip import DenoiserInput
from vidlab.diffusion.objective import Backbone
from vidlab.features.memory import Memory


@dataclass(frozen=True)
class HistoryCache:
    """Memories of calls with the same text and history at different noise levels.

    Args:
        model: one that remembers, ``BackboneSpec.remembers_history``.
        kept: by the number of the call, where rows are split over several.
    """

    model: VideoDenoiser
    kept: dict[int, Memory] = field(default_factory=dict)

    def put_into(self, input: DenoiserInput, number: int) -> DenoiserInput:
        """The input with its memory, which is made by the first of these calls."""
        if number not in self.kept:
            self.kept[number] = self.model.remember(input)
        return replace(input, remembered=self.kept[number])


def cache_for(backbone: Backbone) -> HistoryCache | None:
    """An empty cache, or None for a model that reads its history anew at each noise level."""
    if isinstance(backbone, VideoDenoiser) and backbone.spec.remembers_history:
        return HistoryCache(backbone)
    return None
