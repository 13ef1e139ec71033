"""A warning of training clips so short that frame conditioning would give the model every frame."""

import logging

from vidlab.conditioning.base import Conditioning

log = logging.getLogger(__name__)


class GivenAwayWarning:
    """Warns, once for each length, of clips that are trained without their condition."""

    def __init__(self, conditioning: Conditioning) -> None:
        self._conditioning = conditioning
        self._lengths_seen: set[int] = set()

    def check(self, latent_frames: int) -> None:
        """Warn where a clip of so many latent frames would be known as a whole."""
        if latent_frames in self._lengths_seen:
            return
        self._lengths_seen.add(latent_frames)
        if self._conditioning.gives_all(latent_frames):
            log.warning(
                "conditioning=%s would give all of a clip of %d latent frames away: such clips are trained as "
                "text-to-video, without it. Longer clips, or another pattern, leave something to learn.",
                type(self._conditioning).__name__, latent_frames,
            )  # fmt: skip
