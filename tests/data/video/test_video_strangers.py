"""Files of strangers: no other file is opened, no more memory is taken than allowed, all errors have names."""

import os
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from video_files import encoded, numbered

from vidlab.data.video import DecodeLimits, encode, probe, read_frames
from vidlab.errors import CorruptClipError, UserError

CLIP = encode(numbered(8), 8)


def gif(width: int, height: int) -> bytes:
    """A GIF of declared sides with a picture of one pixel."""
    sides = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return b"GIF89a" + sides + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2\x44\1\0;"


@pytest.mark.parametrize("call", [probe, read_frames])
def test_a_small_file_of_large_frames_is_refused(tmp_path, call):
    path = tmp_path / "bomb.gif"
    path.write_bytes(gif(16000, 16000))
    assert path.stat().st_size < 204
    with pytest.raises(CorruptClipError, match=r"bomb\.gif: its frames have more than max_megapixels=64 megapixels"):
        call(path)


def test_frames_are_held_against_the_limit_as_stored_and_as_shown():
    for video in (CLIP, encode(numbered(8), 8, lossless=True)):
        assert probe(video, limits=DecodeLimits(max_megapixels=48 * 64 / 1e6)).height == 48
        for call in (probe, read_frames):
            with pytest.raises(CorruptClipError, match=r"clip_5: .*max_megapixels=0\.003"):
                call(video, name="clip_5", limits=DecodeLimits(max_megapixels=0.003))
    from fractions import Fraction

    def wide(stream, frame):
        stream.codec_context.sample_aspect_ratio = Fraction(4)

    stretched = encoded(numbered(3), "mp4", "libx264", change=wide)
    with pytest.raises(CorruptClipError, match=r"frames of 48 x 256 have 0\.0123 megapixels"):
        probe(stretched, limits=DecodeLimits(max_megapixels=0.01))


def test_as_many_frames_are_decoded_as_there_is_room_for():
    """8 frames of 48 x 64 are 73,728 bytes."""
    assert len(read_frames(CLIP, limits=DecodeLimits(max_decoded_mb=0.073728))) == 8
    with pytest.raises(
        CorruptClipError, match=r"8 frames of 48 x 64 take 0\.07373 MB decoded, and max_decoded_mb=0\.07"
    ):
        read_frames(CLIP, limits=DecodeLimits(max_decoded_mb=0.07))
    assert len(read_frames(CLIP, range(7), limits=DecodeLimits(max_decoded_mb=0.07))) == 7
    with pytest.raises(CorruptClipError, match="max_decoded_mb"):
        read_frames(CLIP, range(8), limits=DecodeLimits(max_decoded_mb=0.07))
    uncounted = encoded(numbered(300, 16, 16), "webm", "libvpx", options={"deadline": "realtime"})
    with pytest.raises(CorruptClipError, match="261 frames of 16 x 16"):
        read_frames(uncounted, limits=DecodeLimits(max_decoded_mb=0.2))
    with pytest.raises(UserError, match=r"data\.max_megapixels=0: it must be above 0"):
        DecodeLimits(max_megapixels=0)


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile {secret}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
    "hls_address": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4">'
    '<Representation id="1" bandwidth="1"><BaseURL>{secret}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "text": "just some words, " * 40,
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_file_that_names_others_is_refused_and_opens_none(tmp_path, kind, monkeypatch):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(CLIP)
    path = tmp_path / "list.mp4"
    path.write_text(PLAYLISTS[kind].replace("{secret}", str(secret)))
    read = secret.stat().st_atime_ns
    for call in (probe, read_frames):
        with pytest.raises(CorruptClipError, match=r"list\.mp4: not a readable video: damaged, or of a kind"):
            call(path)
        with pytest.raises(CorruptClipError, match="clip_1: not a readable video"):
            call(path.read_bytes(), name="clip_1")
    assert secret.stat().st_atime_ns == read


@pytest.mark.parametrize(
    "name",
    [
        "take:2.mp4",
        "concat:a|b.mp4",
        "subfile,,start,0,end,9,,:x.mp4",
        "data:,x.mp4",
        "http:x.mp4",
        "a%03d.gif",
        "-.mp4",
    ],
)
def test_a_name_is_a_name(tmp_path, monkeypatch, name):
    """No address, no protocol, no pattern, absolute or relative."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(CLIP)
    assert probe(Path(name)) == probe(Path(name).absolute()) == probe(CLIP)
    assert len(read_frames(Path(name))) == 8


def test_names_that_are_not_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    try:
        path.write_bytes(CLIP)
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    assert probe(path) == probe(CLIP) and len(read_frames(path)) == 8
    path.write_bytes(b"no video")
    with pytest.raises(CorruptClipError, match=r"caf�\.mp4: not a readable video") as caught:
        probe(path)
    str(caught.value).encode()  # can be printed


def test_titles_that_are_not_utf8():
    video = encoded(numbered(3), "mp4", "libx264", muxing={})
    assert b"Lavf" in video
    assert probe(video.replace(b"Lavf", b"\xe9\xff\xfe\x80")).frames == 3


def test_an_unknown_codec_is_named():
    video = CLIP.replace(b"avc1", b"zzzz")
    for call in (probe, read_frames):
        with pytest.raises(CorruptClipError, match="clip_2: the codec of its video stream is unknown"):
            call(video, name="clip_2")


@pytest.mark.parametrize(
    ("source", "place", "depth", "misplaced"),
    [
        (10, 10, 0, False), (26, 10, 1, False), (27, 10, 1, True),  # too early: H.264 reorders within 16 frames
        (11, 10, 0, True), (10, 12, 2, False), (10, 13, 2, True),  # too late: a decoder that holds 2 back has shown on
    ],
)  # fmt: skip
def test_packets_far_from_their_turn_are_noticed(source, place, depth, misplaced):
    from types import SimpleNamespace

    from vidlab.data.video.seek import PacketCounter

    times = list(range(40))
    times.insert(place, times.pop(source))
    counter = PacketCounter(SimpleNamespace(codec_context=SimpleNamespace(name="h264", reorder_depth=depth)))
    for time in times:
        counter.add(SimpleNamespace(size=1, pts=time, is_keyframe=time == 0, is_corrupt=False, is_discard=False))
    packets = counter.packets()
    assert packets.misplaced is misplaced and packets.in_order and packets.shown == 40


@pytest.mark.parametrize("rate", ["inf", "1e12", "-3"])
def test_a_rate_that_no_video_has_is_refused(monkeypatch, rate):
    from types import SimpleNamespace

    from vidlab.data.video.reading import _frame_rate
    from vidlab.data.video.seek import Packets

    nothing = Packets(False, None, np.array([], np.int64), 3, 3, 3)
    with pytest.raises(CorruptClipError, match="frames per second is declared, which no video has"):
        _frame_rate(SimpleNamespace(average_rate=float(rate), base_rate=None), nothing)
    with pytest.raises(CorruptClipError, match="no frame rate"):
        _frame_rate(SimpleNamespace(average_rate=None, base_rate=None), nothing)


def test_whatever_fails_inside_names_the_clip(monkeypatch):
    """Bindings fail in ways of their own on headers that lie."""
    from vidlab.data.video import reading

    for error in (
        MemoryError("no room"),
        OverflowError("too large"),
        ValueError("a"),
        ZeroDivisionError("b"),
        OSError(5),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(reading, "_decode", fail)
        with pytest.raises(CorruptClipError, match="clip_9: not a readable video"):
            read_frames(CLIP, name="clip_9")


MUTATED = {
    "h264.mp4": lambda: encoded(numbered(60, 32, 32), "mp4", "libx264", options={"g": "16", "bf": "2"}),
    "mpeg4.avi": lambda: encoded(numbered(60, 32, 32), "avi", "mpeg4", options={"g": "12", "bf": "2"}),
    "vp8.webm": lambda: encoded(numbered(60, 32, 32), "webm", "libvpx", options={"g": "16"}),
    "gif.gif": lambda: encoded(numbered(20, 32, 32), "gif", "gif", pix_fmt="rgb8"),
}


@pytest.mark.parametrize("name", MUTATED)
def test_mutated_files_are_read_or_refused_by_name(name):
    original = MUTATED[name]()
    draw = random.Random(name)
    for _ in range(40):
        data = bytearray(original)
        for _ in range(draw.choice((1, 2, 8))):
            place = draw.randrange(min(len(data), 1200)) if draw.random() < 0.5 else draw.randrange(len(data))
            data[place : place + 4] = draw.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), draw.randbytes(4), b""))
        for call in (probe, read_frames, partial(read_frames, indices=[52])):
            try:
                call(bytes(data), name="clip_7", limits=DecodeLimits(0.1, 10))
            except CorruptClipError as error:
                assert str(error).startswith("clip_7: ") and "Error" not in str(error)


def test_a_chunk_that_an_avi_cannot_hold_takes_no_memory():
    video = encoded(numbered(4), "avi", "mpeg4", muxing={})
    place = video.index(b"strf") + 4
    lies = video[:place] + (2**31).to_bytes(4, "little") + video[place + 4 :]
    for call in (probe, read_frames):
        with pytest.raises(CorruptClipError, match=r"clip_3: damaged: its header says 2147483648 bytes where the file"):
            call(lies, name="clip_3")
    assert probe(video).frames == 4
