"""Reads single clips as training sees them: decoded, scaled and cropped, or encoded already, out of a cache."""

from dataclasses import dataclass

import numpy as np

from vidlab.data.clip_transform import ClipTransform, scale_to_cover
from vidlab.data.names import reason_of
from vidlab.data.samplers.plan import ClipRef
from vidlab.data.storage.index import ClipIndex, ClipRow
from vidlab.data.storage.latent_cache import CachedClip, ClipCache
from vidlab.data.storage.shards import open_member, read_member
from vidlab.data.video import DecodeLimits, read_frames
from vidlab.errors import CorruptClipError, UserError
from vidlab.randomness import seed_of

# A clip at most this many times as long as the wanted segment is decoded whole, so that it can be kept.
WHOLE_CLIP_RATIO = 2


@dataclass(frozen=True)
class LoadedClip:
    """One clip as it is trained on: its frames or latents, its caption and how it was cut.

    Args:
        content: its frames, uint8 (T, H, W, 3), or what they were encoded to.
        row: what the index says.
        visit: for which visit it was made.
        caption: place of the chosen caption.
        fps: frames per second of ``content``.
        crop: (top, left) in pixels after scaling.
        stride: source frames from one frame to the next.
    """

    content: np.ndarray | CachedClip
    row: ClipRow
    visit: ClipRef
    caption: int
    fps: float
    crop: tuple[int, int]
    stride: int


class ClipReader:
    """Reads single clips, from their files or from a cache of latents.

    Frames of short clips are kept, already scaled, as long as ``cache_mb`` lasts; nothing is evicted, because under a
    shuffled order every kept clip is as likely to be used next as any other.

    Args:
        index: the clips.
        view: what is drawn of a clip at random, and how many views there are of it.
        seed: the run's seed.
        cache_mb: megabytes (1e6 bytes) of decoded frames kept per worker; 0 keeps none.
        cache: where encoded clips are read instead of decoding, made from this index and these views.
        limits: what decoding a clip may take; None is the default.

    Attributes:
        unreadable: why a clip could not be read, by position; it is not tried again.
    """

    def __init__(
        self,
        index: ClipIndex,
        view: ClipTransform,
        seed: int,
        cache_mb: float | int = 0,
        cache: ClipCache | None = None,
        limits: DecodeLimits | None = None,
    ) -> None:
        self.index = index
        self.view = view
        self.seed = seed
        self.cache = cache
        self.limits = limits or DecodeLimits()
        self.unreadable: dict[int, str] = {}
        self._kept: dict[int, np.ndarray] = {}
        self._room = int(cache_mb * 1e6)

    def load(self, row: ClipRow, visit: ClipRef, view: ClipTransform) -> LoadedClip:
        """One clip, decoded and cut, or read from the cache.

        Raises:
            CorruptClipError: it cannot be read, whatever its file made a reader raise.
            DataError: a damaged cache.
        """
        if visit.position in self.unreadable:
            raise CorruptClipError(self.unreadable[visit.position])
        try:
            return self._load(row, visit, view)
        except UserError:
            raise
        except Exception as error:
            raise CorruptClipError(reason_of(error)) from error

    def _load(self, row: ClipRow, visit: ClipRef, view: ClipTransform) -> LoadedClip:
        if self.cache is not None:
            clip = self.cache.read(visit.position, self.view.number(visit))
            if clip.caption >= len(row.captions):
                raise CorruptClipError(f"the cache is of caption {clip.caption}, the index has {len(row.captions)}")
            return LoadedClip(clip, row, visit, clip.caption, row.fps / clip.stride, clip.crop, clip.stride)
        offset = self._choose(row, visit, "frame_offset", row.frames - view.span + 1)
        wanted = range(offset, offset + view.span, view.frame_stride)
        frames = self._scaled(row, visit.position, wanted, view)
        top = self._choose(row, visit, "crop_y", frames.shape[1] - view.height + 1)
        left = self._choose(row, visit, "crop_x", frames.shape[2] - view.width + 1)
        frames = frames[:, top : top + view.height, left : left + view.width]
        caption = 0
        if self.view.random and len(row.captions) > 1:
            caption = self._choose(row, visit, "caption", len(row.captions))
        fps = row.fps / view.frame_stride
        return LoadedClip(frames, row, visit, caption, fps, (top, left), view.frame_stride)

    def _choose(self, row: ClipRow, visit: ClipRef, purpose: str, choices: int) -> int:
        """A keyed number in [0, choices), or the middle one."""
        if choices <= 1 or not self.view.random:
            return (choices - 1) // 2
        return seed_of(self.seed, row.key, self.view.key(visit), purpose) % choices

    def _scaled(self, row: ClipRow, position: int, wanted: range, view: ClipTransform) -> np.ndarray:
        """The wanted frames, scaled but not cropped, from memory when they are kept there."""
        whole = self._kept.get(position)
        if whole is not None:
            return whole[wanted.start : wanted.stop : wanted.step]
        place = (self.index.root, row.shard, row.offset, row.size, row.key, row.crc)
        if self._room <= 0 or row.frames > WHOLE_CLIP_RATIO * view.span:
            frames = read_frames(open_member(*place), row.frames_in_file(wanted), row.key, self.limits)
            return scale_to_cover(row.area(frames), view.height, view.width)
        # of a clip cut from a long file only its part is read
        member = read_member(*place) if row.first_frame is None else open_member(*place)
        frames = read_frames(member, row.frames_in_file(), row.key, self.limits)
        whole = scale_to_cover(row.area(frames), view.height, view.width)
        if len(whole) < wanted.stop:
            raise CorruptClipError(f"frame {wanted[-1]} is wanted but the video has {len(whole)}")
        if whole.nbytes <= self._room:
            self._kept[position] = whole
            self._room -= whole.nbytes
        return whole[wanted.start : wanted.stop : wanted.step]
