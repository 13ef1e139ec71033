"""What to make of each prompt: how many videos, of which seed, at which precision, how long."""

from dataclasses import dataclass

from vidlab.errors import UserError
from vidlab.pipelines.structure_input import StructureInput


@dataclass(frozen=True)
class GenerationSettings:
    """What to make of each prompt.

    Args:
        num_videos: per prompt.
        seed: of all random numbers.
        batch_size: videos made at once.
        precision: of the denoiser.
        segments: clips a video is continued to.
        overlap: frames a clip shares with the one before; None is half a clip.
        interpolate: take the clip for key frames and fill the gaps between them.
        fps: frames per second at which the videos are shown.
        structure: edges, depth or outlines that all of them follow.

    Raises:
        UserError: the structure of one clip for a longer video.
    """

    num_videos: int = 1
    seed: int = 0
    batch_size: int = 8
    precision: str = "auto"
    segments: int = 1
    overlap: int | None = None
    interpolate: bool = False
    fps: float = 8.0
    structure: StructureInput | None = None

    def __post_init__(self) -> None:
        if self.structure is not None and (self.segments > 1 or self.interpolate):
            raise UserError("structure goes with one clip: use segments=1 and interpolate=false.")
