import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vidlab.data.storage.shards import MemberFile
from vidlab.data.video import DecodeLimits, VideoInfo, encode, probe, read_frames, to_frames, to_pixels
from vidlab.data.video.container import opened, video_stream
from vidlab.data.video.frames import FrameStore
from vidlab.data.video.seek import list_packets, seek_and_decode, timeline_of
from vidlab.errors import CorruptClipError

FRAMES = 120
LIMITS = DecodeLimits()
FORMATS = {
    "x264_b_frames.mp4": ("libx264", "yuv420p", {"g": "24", "bf": "3", "preset": "veryfast"}),
    "x264_open_gop.mkv": (
        "libx264",
        "yuv420p",
        {"g": "24", "bf": "3", "preset": "veryfast", "x264-params": "open-gop=1"},
    ),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"g": "24", "deadline": "realtime", "cpu-used": "8", "crf": "30"}),
    "vp8_hidden.webm": ("libvpx", "yuv420p", {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"g": "12", "bf": "2"}),
    "ten_bit.mp4": ("libx265", "yuv420p10le", {"x265-params": "log-level=none:pools=none"}),
    "gray.mp4": ("libx264", "gray", {"preset": "veryfast"}),
    "animation.gif": ("gif", "rgb8", {}),
}


def numbered_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frame n shows n in its gray level: 2 n everywhere, plus a still gradient along x of at most 10."""
    ramp = np.linspace(0, 10, width)[None, None, :, None] + 2 * np.arange(count)[:, None, None, None]
    return np.broadcast_to(ramp, (count, height, width, 3)).astype(np.uint8)


def write(path: Path, frames: np.ndarray, codec: str, pix_fmt: str, options: dict[str, str], **container) -> None:
    with av.open(str(path), "w", **container) as output:
        stream = output.add_stream(codec, rate=Fraction(24), options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        output.mux(stream.encode(silence))
        output.mux(stream.encode(None))


@pytest.mark.parametrize("shape", [(8, 32, 32), (1, 31, 33), (5, 2, 7)])
def test_lossless_keeps_every_rgb_value(shape):
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    video = encode(frames, fps=8, lossless=True)
    assert np.array_equal(read_frames(video), frames)
    assert probe(video) == VideoInfo(shape[0], shape[1], shape[2], 8.0, shape[0] / 8)
    assert encode(frames, fps=8, lossless=True) == video


def test_playable_mp4_keeps_colors_and_pads_odd_sizes():
    colors = np.array([[250, 10, 20], [10, 240, 30], [20, 30, 250], [128, 128, 128]], np.uint8)
    frames = np.repeat(np.broadcast_to(colors[:, None, None], (4, 33, 47, 3)), 6, axis=0)
    video = encode(frames, fps=12.5)
    assert probe(video) == VideoInfo(24, 34, 48, 12.5, 24 / 12.5)
    decoded = read_frames(video).astype(int)
    # 8-bit YUV and crf 18 cost a few levels; the wrong matrix (BT.601 for BT.709) would cost more than 15.
    assert np.abs(decoded[:, :33, :47] - frames).max() <= 6
    with av.open(io.BytesIO(video)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def test_key_frame_at_least_once_a_second():
    with av.open(io.BytesIO(encode(numbered_frames(60), fps=10))) as container:
        keys = [n for n, p in enumerate(p for p in container.demux(video=0) if p.size) if p.is_keyframe]
    assert max(np.diff([*keys, 60])) <= 10


@pytest.mark.parametrize("name", FORMATS)
def test_any_frame_of_any_format_by_number(tmp_path, name):
    path = tmp_path / name
    write(path, numbered_frames(FRAMES), *FORMATS[name])
    info = probe(path)
    assert (info.frames, info.height, info.width) == (FRAMES, 48, 64)
    assert info.fps == pytest.approx(24, rel=0.05)
    assert info.duration == pytest.approx(FRAMES / info.fps)
    whole = read_frames(path)
    assert whole.shape == (FRAMES, 48, 64, 3) and whole.dtype == np.uint8
    wanted = [100, 3, 119, 60, 60, 0]
    picked = read_frames(path, wanted)
    assert np.array_equal(picked, whole[wanted])
    levels = picked.mean(axis=(1, 2, 3)) - 5
    # A GIF has few colors, and the gray encoder leaves the range of its levels undeclared.
    tolerance = 20 if name in ("animation.gif", "gray.mp4") else 3
    assert np.abs(levels - 2 * np.array(wanted)).max() < tolerance
    assert np.array_equal(read_frames(path.read_bytes(), [70]), whole[[70]])


def planes(path: Path, codec: str, pix_fmt: str, levels: list[int], color_range: int) -> None:
    """A clip of one color, its planes filled with ``levels`` as they are stored, in BT.709 and a declared range."""
    deep = "10" in pix_fmt
    with av.open(str(path), "w") as output:
        options = {"x265-params": "log-level=none:pools=none:lossless=1"} if codec == "libx265" else {"qp": "0"}
        stream = output.add_stream(codec, rate=8, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 64, pix_fmt
        stream.codec_context.color_range, stream.codec_context.colorspace = color_range, 1
        for number in range(3):
            frame = av.VideoFrame(64, 64, pix_fmt)
            frame.pts, frame.color_range, frame.colorspace = number, color_range, 1
            for plane, level in zip(frame.planes, levels, strict=True):
                kind = np.dtype("<u2" if deep else "u1")
                plane.update(np.full(plane.buffer_size // kind.itemsize, level, kind).tobytes())
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("stored", "rgb"),
    [
        # of 64 ... 940: white, black, and gray at (502 - 64) / 876 = 1/2
        (("libx265", "yuv420p10le", [940, 512, 512], 1), (255, 255, 255)),
        (("libx265", "yuv420p10le", [64, 512, 512], 1), (0, 0, 0)),
        (("libx265", "yuv420p10le", [502, 512, 512], 1), (128, 128, 128)),
        # BT.709's red has luma 0.2126 of 876 over 64; Cb = -0.2126 / 1.8556 and Cr = 1/2 of 896 around 512
        (("libx265", "yuv420p10le", [250, 409, 960], 1), (255, 0, 0)),
        # one plane: full range is the level itself, limited range 16 ... 235
        (("libx264", "gray", [77], 2), (77, 77, 77)),
        (("libx264", "gray", [235], 1), (255, 255, 255)),
        (("libx264", "gray", [16], 1), (0, 0, 0)),
    ],
    ids=["white", "black", "half", "red", "gray full", "gray white", "gray black"],
)
def test_ten_bits_and_grey_are_eight_bit_colors(tmp_path, stored, rgb):
    path = tmp_path / "clip.mkv"
    planes(path, *stored)
    frames = read_frames(path)
    assert frames.shape == (3, 64, 64, 3) and frames.dtype == np.uint8
    assert np.abs(frames.astype(int) - np.array(rgb)).max() <= 2  # FFmpeg's conversion from 10 bits takes off up to 2


@pytest.mark.parametrize("name", ["x264_b_frames.mp4", "x264_open_gop.mkv", "vp9.webm"])
def test_far_frames_are_reached_by_seeking(tmp_path, name):
    path = tmp_path / name
    write(path, numbered_frames(FRAMES), *FORMATS[name])
    with opened(path, "") as file, video_stream(file, LIMITS) as (container, stream):
        found = FrameStore(stream, 2, LIMITS)
        assert seek_and_decode(container, stream, [60, 110], found)
    assert sorted(found.places) == [60, 110]


def test_evenly_spaced_frames_of_an_mp4_are_found_without_reading_packets(tmp_path, monkeypatch):
    """The listed times are those that the packets have, B-frames and edit list included."""
    path = tmp_path / "x264_b_frames.mp4"
    write(path, numbered_frames(FRAMES), *FORMATS[path.name])
    with opened(path, "") as file, video_stream(file, LIMITS) as (container, stream):
        packets = list_packets(container, stream)
    whole = read_frames(path)

    def a_few(container, stream, most=None):
        assert most is not None and most < 10
        return list_packets(container, stream, most)

    monkeypatch.setattr("vidlab.data.video.seek.list_packets", a_few)
    with opened(path, "") as file, video_stream(file, LIMITS) as (container, stream):
        assert timeline_of(container, stream).shown.tolist() == packets.times.tolist()
    assert np.array_equal(read_frames(path, [110, 60]), whole[[110, 60]])


def test_a_member_is_decoded_out_of_its_shard(tmp_path):
    """Only part of the file is read, and what lies around it does not show."""
    video = encode(np.random.default_rng(0).integers(0, 256, (100, 32, 48, 3), np.uint8), fps=8)
    shard = tmp_path / "s.tar"
    shard.write_bytes(b"x" * 777 + video + b"y" * 99)
    member = MemberFile(shard, 777, len(video))
    assert np.array_equal(read_frames(member, [90, 3], "clip"), read_frames(video, [90, 3])) and member.closed
    with MemberFile(shard, 777, len(video)) as member:
        assert member.read() == video and member.read(5) == b"" and member.seek(-4, 2) == len(video) - 4
        assert member.read(100) == video[-4:]
    with pytest.raises(CorruptClipError, match=r"s\.tar: cut off, 99 of 100 bytes"):
        MemberFile(shard, 777 + len(video), 100)
    with pytest.raises(CorruptClipError, match=r"gone\.tar: No such file"):
        MemberFile(tmp_path / "gone.tar", 0, 1)


def test_container_that_declares_no_count_is_counted(tmp_path):
    path = tmp_path / "vp9.webm"
    write(path, numbered_frames(7), *FORMATS["vp9.webm"])
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    assert probe(path).frames == 7


@pytest.mark.parametrize(("turn", "matrix"), [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))])
def test_rotation_metadata_is_applied(turn, matrix):
    frames = np.random.default_rng(1).integers(0, 256, (2, 16, 32, 3), dtype=np.uint8)

    def display_matrix(a: int, b: int, c: int, d: int) -> bytes:
        rows = (a * 65536, b * 65536, 0, c * 65536, d * 65536, 0, 0, 0, 1 << 30)
        return b"".join(value.to_bytes(4, "big", signed=True) for value in rows)

    video = encode(frames, fps=8, lossless=True)
    track = video.index(b"tkhd")
    turned = video[:track] + video[track:].replace(display_matrix(1, 0, 0, 1), display_matrix(*matrix), 1)
    assert turned != video
    clockwise = np.rot90(frames, k=-turn // 90, axes=(1, 2))
    assert np.array_equal(read_frames(turned), clockwise)
    assert (probe(turned).height, probe(turned).width) == clockwise.shape[1:3]


def test_broken_files_are_named_with_the_reason(tmp_path, capfd):
    whole = tmp_path / "whole.mp4"
    write(
        whole,
        numbered_frames(60),
        *FORMATS["x264_b_frames.mp4"],
        container_options={"movflags": "+faststart"},
    )
    lossy = encode(numbered_frames(30), 8)
    cases = {
        "empty.mp4": (b"", "empty"),
        "text.mp4": (b"just some words\n" * 40, "not a readable video"),
        "no_header.mp4": (lossy[: lossy.index(b"moov")], "not a readable video|no video"),
        "cut_off.mp4": (whole.read_bytes()[: whole.stat().st_size * 2 // 3], "cut off: .* of 60"),
    }
    for name, (content, reason) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CorruptClipError, match=f"{name}: .*({reason})"):
            probe(path)
    write_sound(tmp_path / "sound.mp4")
    for call in (probe, read_frames):
        with pytest.raises(CorruptClipError, match=r"sound.mp4: no video stream, only audio"):
            call(tmp_path / "sound.mp4")
        with pytest.raises(CorruptClipError, match=r"gone.mp4: no such file"):
            call(tmp_path / "gone.mp4")
    with pytest.raises(CorruptClipError, match=r"clip_7: .*empty"):
        read_frames(b"", name="clip_7")
    assert capfd.readouterr().err == ""


def test_damaged_frames_and_frames_beyond_the_end_are_errors():
    video = encode(numbered_frames(6), 8, lossless=True)
    with pytest.raises(CorruptClipError, match="clip_1: frame 6 is wanted"):
        read_frames(video, [0, 6], "clip_1")
    start = video.index(b"mdat") + 4
    damaged = video[:start] + b"\xff" * 2000 + video[start + 2000 :]
    with pytest.raises(CorruptClipError, match="clip_2"):
        read_frames(damaged, [5], "clip_2")
    with pytest.raises(ValueError, match="indices"):
        read_frames(video, [])
    with pytest.raises(ValueError, match="indices"):
        read_frames(video, [-1])


def test_a_playlist_does_not_open_what_it_names(tmp_path):
    secret = tmp_path / "secret.ts"
    write(secret, numbered_frames(8), *FORMATS["x264_b_frames.mp4"], format="mpegts")
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
    with pytest.raises(CorruptClipError, match=r"list.mp4"):
        probe(playlist)


def test_pixels_are_frames_between_minus_one_and_one():
    frames = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    assert torch.allclose(to_pixels(frames).flatten(), torch.tensor([-1.0, -0.6, 1.0]))
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    pixels = to_pixels(every)
    assert pixels.shape == (3, 1, 16, 16) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    assert np.array_equal(to_frames(pixels), every)
    assert to_frames(torch.tensor([-7.0, 0.2, 9.0]).view(3, 1, 1, 1)).flatten().tolist() == [0, 153, 255]


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8, 1), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)]
)
def test_encode_refuses_what_is_not_frames(bad):
    with pytest.raises(ValueError, match="uint8"):
        encode(bad, 8)
