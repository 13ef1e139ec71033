"""Frames by number are those of a whole decode, whatever the container, the codec and the times."""

import numpy as np
import pytest
from video_files import encoded, numbered, packed_b_frames, remuxed

from vidlab.data.video import encode, probe, read_frames

FRAMES = numbered(100)
X264 = {"g": "24", "bf": "3", "preset": "veryfast"}
X265 = {"x265-params": "log-level=none:pools=none:keyint=24:open-gop=1:bframes=3", "preset": "ultrafast"}
ASP = {"g": "12", "bf": "2"}
VARIABLE = np.cumsum(np.random.default_rng(0).integers(1, 4, 100)).tolist()


def x264(container: str = "mp4", **how) -> bytes:
    return encoded(FRAMES, container, "libx264", **{"options": X264, **how})


def from_second_key(packets: list) -> list:
    """Cut where a player would: at a key frame, whose leading frames refer to what is gone."""
    return packets[[n for n, packet in enumerate(packets) if packet.is_keyframe][1] :]


def open_gop(container: str = "matroska", change=lambda packets: packets) -> bytes:
    return remuxed(x264("matroska", options={**X264, "x264-params": "open-gop=1"}), container, change)


def hevc(container: str, change=lambda packets: packets) -> bytes:
    return remuxed(encoded(FRAMES, "mp4", "libx265", options=X265), container, change)


def asp(container: str, change=lambda packets: packets) -> bytes:
    return remuxed(encoded(FRAMES, "mp4", "mpeg4", options=ASP), container, change)


def mpeg2(container: str, change=lambda packets: packets) -> bytes:
    return remuxed(encoded(FRAMES, "matroska", "mpeg2video", options=ASP), container, change)


VIDEOS = {
    "h264.mp4": x264,
    "h264_fragments.mp4": lambda: x264(muxing={"movflags": "frag_keyframe+empty_moov"}),
    "h264_variable_rate.mp4": lambda: x264(times=VARIABLE),
    "h264_variable_rate.mkv": lambda: x264("matroska", times=VARIABLE),
    "h264_late_start.mp4": lambda: x264(times=range(77, 177)),
    "h264_late_start.mkv": lambda: x264("matroska", times=range(77, 177)),
    "h264_late_start.ts": lambda: x264("mpegts", times=range(77, 177)),
    "h264.flv": lambda: x264("flv"),
    "h264.avi": lambda: x264("avi", options={"g": "24", "bf": "0"}),
    "h264_intra_refresh.mkv": lambda: x264("matroska", options={"g": "24", "bf": "0", "intra-refresh": "1"}),
    "h264_open_gop.mkv": open_gop,
    "h264_open_gop.mp4": lambda: open_gop("mp4"),
    "h264_open_gop_cut.mp4": lambda: open_gop("mp4", from_second_key),
    "h264_without_first_key.mkv": lambda: remuxed(x264(), "matroska", lambda packets: packets[3:]),
    "h264_packet_lost.mp4": lambda: remuxed(x264(), "mp4", lambda packets: packets[:30] + packets[31:]),
    "h264_key_lost.mkv": lambda: remuxed(x264(), "matroska", lambda packets: packets[:48] + packets[49:]),
    "hevc_open_gop.mp4": lambda: hevc("mp4"),
    "hevc_open_gop_cut.mkv": lambda: hevc("matroska", from_second_key),
    "mpeg4.mp4": lambda: asp("mp4"),
    "mpeg4_without_first_key.mkv": lambda: asp("matroska", lambda packets: packets[3:]),
    "mpeg4.avi": lambda: encoded(FRAMES, "avi", "mpeg4", options=ASP),
    "mpeg4_of_avi.mkv": lambda: remuxed(encoded(FRAMES, "avi", "mpeg4", options=ASP), "matroska"),
    "mpeg4_packed.avi": lambda: packed_b_frames(FRAMES),
    "mpeg4_packed.mkv": lambda: remuxed(packed_b_frames(FRAMES), "matroska"),
    "mpeg2_cut.mkv": lambda: mpeg2("matroska", from_second_key),
    "mpeg2.ts": lambda: mpeg2("mpegts"),
    "mpeg2.mpg": lambda: mpeg2("mpeg"),
    "vp8_hidden.webm": lambda: encoded(
        FRAMES, "webm", "libvpx", options={"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16"}
    ),
    "wmv2.wmv": lambda: encoded(FRAMES, "asf", "wmv2", options={"g": "24"}),
    "png.mp4": lambda: encode(FRAMES, 24, lossless=True),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_any_frames_are_those_of_a_whole_decode(name):
    video = VIDEOS[name]()
    whole = read_frames(video)
    assert probe(video).frames == len(whole) >= 70
    for wanted in (range(50, 58), [0, 55, len(whole) - 1], [62], range(len(whole) - 5, len(whole))):
        assert np.array_equal(read_frames(video, wanted), whole[list(wanted)]), list(wanted)


@pytest.mark.parametrize("name", ["h264.mp4", "h264_open_gop.mkv", "mpeg4.avi", "mpeg4_packed.avi", "mpeg2.ts"])
def test_a_whole_decode_is_in_the_order_shown(name):
    """Frame n has level 2 n: the darkest of each is that of the background, and none is darker than the one before."""
    levels = np.median(read_frames(VIDEOS[name]()).astype(int), axis=(1, 2, 3))
    assert len(levels) == 100 and np.abs(levels - 2 * np.arange(100)).max() <= 8


def test_far_frames_of_ordinary_files_are_sought(monkeypatch):
    """Seeking is what makes far frames cheap; it must not give up on ordinary files."""
    from vidlab.data.video import reading

    outcomes = []
    seek = reading.seek_and_decode
    monkeypatch.setattr(reading, "seek_and_decode", lambda *given: outcomes.append(seek(*given)) or outcomes[-1])
    ordinary = ("h264.mp4", "h264_fragments.mp4", "h264_variable_rate.mkv", "hevc_open_gop.mp4", "mpeg4.mp4", "png.mp4")
    for name in ordinary:
        read_frames(VIDEOS[name](), range(70, 74))
    assert outcomes == [True] * len(ordinary)


def test_times_that_name_no_frame_are_not_sought_by():
    """Decoding times in even steps promise nothing where presentation times leave the grid."""

    def shifted(packets: list) -> list:
        for packet in packets[60:]:
            packet.pts += packets[1].dts - packets[0].dts
        return packets

    video = remuxed(encoded(FRAMES, "mp4", "libx264", options={"g": "24", "bf": "0"}), "mp4", shifted)
    assert np.array_equal(read_frames(video, [80, 81]), read_frames(video)[[80, 81]])
