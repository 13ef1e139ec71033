"""Seeks to far frames of a video, where what the file says of its frames lets their numbers be known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from vidlab.data.video.frames import FrameStore

# Decoding a few dozen frames is cheaper than listing every packet of the file in order to seek.
SEEK_DISTANCE = 48

# Containers whose packets bear the times at which their frames are shown, and whose key frames are marked.
SEEKABLE = ("mov", "matroska")


# Frames that may be shown between a frame and one that is decoded before it, in H.264 and its successors.
MOST_REORDERED = 16


@dataclass(frozen=True)
class Packets:
    """The packets of a video stream.

    Args:
        cut: True when the first one is no key frame or others are shown before it: they refer to what was cut off.
        first: presentation time of the first one.
        times: presentation times of shown frames, sorted.
        intact: packets that are not marked as damaged.
        shown: packets of shown frames.
        total: all of them.
        misplaced: True when one lies farther from its turn than its codec puts it: a decoder may drop its frame.
    """

    cut: bool
    first: int | None
    times: np.ndarray
    intact: int
    shown: int
    total: int
    misplaced: bool = False

    @property
    def in_order(self) -> bool:
        """True when each shown frame has its own presentation time, so a time names a frame number."""
        return len(self.times) == self.shown and bool((self.times[1:] > self.times[:-1]).all())


class PacketCounter:
    """Counts packets as they are demuxed."""

    def __init__(self, stream: Any) -> None:
        self._hides_frames = stream.codec_context.name in ("vp8", "libvpx")
        self._reorder_depth = int(stream.codec_context.reorder_depth)
        self._key, self._first = False, None
        self._times: list[int] = []
        self._intact = self._shown = self._total = 0

    def add(self, packet: Any) -> None:
        """Count a packet; the empty one at the end is none."""
        if packet.size == 0:
            return
        self._total += 1
        if self._total == 1:
            self._key, self._first = packet.is_keyframe, packet.pts
        self._intact += not packet.is_corrupt
        # VP8 has packets that are only referred to and never shown: bit 4 of the first byte is show_frame.
        if packet.is_discard or (self._hides_frames and not bytes(packet)[0] & 0x10):
            return
        self._shown += 1
        if packet.pts is not None:
            self._times.append(packet.pts)

    def packets(self) -> Packets:
        """What was counted."""
        times = np.sort(np.asarray(self._times, dtype=np.int64))
        cut = not self._key or (self._first is not None and len(times) > 0 and times[0] < self._first)
        misplaced = _is_misplaced(np.asarray(self._times, dtype=np.int64), self._reorder_depth)
        return Packets(bool(cut), self._first, times, self._intact, self._shown, self._total, misplaced)


def _is_misplaced(times: np.ndarray, depth: int) -> bool:
    """Whether a packet lies where no encoder puts it.

    A decoder holds at most ``depth`` frames back: as many may precede one in the file and be shown after it.

    Args:
        times: presentation times in the order of the file.
        depth: of the codec's reordering.
    """
    places = np.argsort(times, kind="stable")
    far = np.abs(places - np.arange(len(places))).max(initial=0)
    overtaken = np.zeros(len(times), dtype=np.int64)
    for distance in range(1, min(MOST_REORDERED, len(times) - 1) + 1):
        overtaken[distance:] += times[:-distance] > times[distance:]
    return bool(far > MOST_REORDERED or overtaken.max(initial=0) > depth)


def list_packets(container: Any, stream: Any, most: int | None = None) -> Packets:
    """Demux the stream from where it stands, or ``most`` packets of it, without decoding."""
    counter = PacketCounter(stream)
    for packet in islice(container.demux(stream), most):
        counter.add(packet)
    return counter.packets()


@dataclass(frozen=True)
class Timeline:
    """The presentation times of the frames of a stream.

    Args:
        shown: presentation times in order, int64.
        decoded: decoding times of the packets, in order, where those of presentation are concluded from them; None
            where each packet was read.
    """

    shown: np.ndarray
    decoded: np.ndarray | None = None

    def number(self, frame: Any) -> int | None:
        """The number of a decoded frame; None where no frame is shown at its time."""
        if frame.pts is None:
            return None
        place = int(np.searchsorted(self.shown, frame.pts))
        return place if place < len(self.shown) and self.shown[place] == frame.pts else None

    def confirms(self, key: int, packets: Sequence[Any]) -> bool:
        """Whether key frame number ``key`` is shown after what is decoded before it and what leads it, and no more.

        Args:
            key: number of the key frame that the first packet holds.
            packets: as they come after a seek.
        """
        if self.decoded is None:
            return True
        first = packets[0]
        if first.pts is None or first.dts is None:
            return False
        leading = sum(packet.size > 0 and packet.pts is not None and packet.pts < first.pts for packet in packets)
        return key == int(np.searchsorted(self.decoded, first.dts)) + leading


def timeline_of(container: Any, stream: Any) -> Timeline | None:
    """When the frames are shown; None where times name no frames.

    An mp4 lists the decoding times of its packets. Where those are evenly spaced, fill the stream's duration and none
    is hidden, the presentation times are taken to be evenly spaced too, which is confirmed at each key frame that is
    used; otherwise all packets are read.
    """
    if "mp4" in container.format.name and stream.start_time is not None:
        entries = stream.index_entries
        times = np.array([entry.timestamp for entry in entries if not entry.is_discard], np.int64)
        step = int(times[1] - times[0]) if len(times) > 1 else 0
        even = step > 0 and bool((np.diff(times) == step).all())
        if even and len(times) == len(entries) == stream.frames and stream.duration == step * len(times):
            first = list_packets(container, stream, stream.codec_context.reorder_depth + 2)
            if first.cut or first.first != stream.start_time:
                return None
            return Timeline(stream.start_time + step * np.arange(len(times), dtype=np.int64), times)
    packets = list_packets(container, stream)
    sound = packets.intact == packets.total and not packets.misplaced
    certain = packets.in_order and not packets.cut and sound
    return Timeline(packets.times) if certain else None


def is_far(container: Any, wanted: Sequence[int]) -> bool:
    """Whether frames, sorted, are worth seeking to and the container is of a kind in which that can be done."""
    far = max(wanted[0], *np.diff(wanted), 0) > SEEK_DISTANCE
    return bool(far) and any(name in container.format.name for name in SEEKABLE)


def seek_and_decode(container: Any, stream: Any, wanted: Sequence[int], found: FrameStore) -> bool:
    """Decode the wanted frames into ``found``, seeking over the rest; False where they cannot be told for certain.

    After a seek the frames must begin with a key frame, be undamaged, have times that are listed and leave none out:
    then they are those that a decode of the whole file shows.
    """
    timeline = timeline_of(container, stream)
    if timeline is None or wanted[-1] >= len(timeline.shown):
        return False
    gaps = np.diff(np.asarray(wanted))
    runs = np.split(np.asarray(wanted), np.flatnonzero(gaps > SEEK_DISTANCE) + 1)
    for run in (part.tolist() for part in runs):
        # an mp4 is sought by decoding times, and may land behind a frame that is shown before it is its turn
        for ahead in (0, MOST_REORDERED):
            container.seek(int(timeline.shown[max(run[0] - ahead, 0)]), stream=stream, backward=True)
            if _decode_run(container.demux(stream), timeline, run, found):
                break
        else:
            return False
    return True


def _decode_run(packets: Iterator[Any], timeline: Timeline, run: list[int], found: FrameStore) -> bool:
    """Decode a few frames that lie near each other; False where they cannot be told."""
    keep, seen = set(run), list[Any]()
    key = before = None
    for packet in packets:
        seen += [packet] if packet.size and len(seen) <= MOST_REORDERED else []
        for frame in packet.decode():
            number = timeline.number(frame)
            # a key frame that needs what came before it decodes as rubbish after a seek; FFmpeg flags it
            if frame.is_corrupt or number is None:
                return False
            if before is None:
                if not frame.key_frame or number > run[0]:
                    return False
                key = number
            elif number != before + 1:
                return False
            before = number
            if number in keep:
                found.add(number, frame)
        if before is not None and before >= run[-1]:
            break
    if key is None or not keep <= found.places.keys():
        return False
    return timeline.confirms(key, seen) or timeline.confirms(key, [*seen, *islice(packets, MOST_REORDERED)])
