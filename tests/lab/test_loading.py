"""``vidlab.load``: the videos of generate.py, in Python."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_exported import HAAR, PROMPTS, composed, exported, trained

import vidlab
from vidlab.autoencoders.haar import Haar
from vidlab.conditioning.frame_replacement import FrameReplacement
from vidlab.conditioning.patterns import EveryNth
from vidlab.data.video import read_frames
from vidlab.errors import UserError
from vidlab.lab.generate import from_checkpoint
from vidlab.sampling.gaussian import GaussianSampler
from vidlab.sampling.solvers import Euler

FRAME_REPLACEMENT = (*HAAR, "conditioning=frame_replacement", "model.token=[1,4,4]")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"), *HAAR)


@pytest.fixture(scope="module")
def with_frames(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"), *FRAME_REPLACEMENT)


def by_program(reference, *arguments):
    cfg = composed("generate", "prompt=x", "num_videos=2", "accelerator=cpu", "steps=2", *arguments)
    cfg.checkpoint = str(reference)
    return from_checkpoint(cfg)[1](PROMPTS)


def same(found, expected) -> bool:
    return len(found) == len(expected) and all(
        a.prompt == b.prompt and a.number == b.number and np.array_equal(a.frames, b.frames)
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_videos_of_generate_py_bit_by_bit(checkpoint, precision):
    pipe = vidlab.load(checkpoint)
    found = pipe(PROMPTS, num_videos=2, steps=2, precision=precision, progress=False)
    assert same(found, by_program(checkpoint, f"precision={precision}")) and len(found) == 4
    assert found[0].frames.shape == (4, 16, 16, 3) and found[0].frames.dtype == np.uint8
    again = pipe(PROMPTS, num_videos=2, seed=1, steps=2, precision=precision, progress=False)
    assert not same(again, found)


def test_clips_are_decoded_in_parts(with_frames, monkeypatch):
    """The frames that pass at a time are as many as asked for, and the video is the same."""
    given, decode = [], Haar.decode
    monkeypatch.setattr(Haar, "decode", lambda self, latents: given.append(latents.shape[2]) or decode(self, latents))
    whole = vidlab.load(with_frames)(PROMPTS, 2, steps=2, progress=False)
    assert set(given) == {4}
    given.clear()
    parts = vidlab.load(with_frames, frames_at_once=3)(PROMPTS, 2, steps=2, progress=False)
    assert set(given) == {3, 1}
    for found in (parts, by_program(with_frames, "frames_at_once=3")):
        for a, b in zip(found, whole, strict=True):
            assert np.abs(a.frames.astype(int) - b.frames).max() <= 1  # of 255, at the edge of rounding
    with pytest.raises(UserError, match="frames_at_once=0 must be 1 or more"):
        vidlab.load(with_frames, frames_at_once=0)


def test_samplers_and_guidances_by_name_and_by_themselves(checkpoint):
    pipe = vidlab.load(checkpoint)
    found = pipe(PROMPTS, 2, sampler="heun", guidance="cfg_cosine", steps=2, progress=False)
    assert same(found, by_program(checkpoint, "sampler=heun", "guidance=cfg_cosine"))
    own = GaussianSampler(Euler(), steps=2)
    assert same(pipe(PROMPTS, sampler=own, progress=False), pipe(PROMPTS, sampler=own, progress=False))
    with pytest.raises(UserError, match=r"sampler=hein: no such choice. Did you mean 'heun'"):
        pipe("x", sampler="hein", refine="/no/such/refiner")  # refused before a prompt is expanded


def test_given_frames(with_frames, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    pipe = vidlab.load(str(with_frames))
    found = pipe(PROMPTS, 2, image=tmp_path / "p.png", segments=2, overlap=1, steps=2, progress=False)
    assert found[0].frames.shape == (7, 16, 16, 3)
    expected = by_program(with_frames, f"image={tmp_path / 'p.png'}", "segments=2", "overlap=1")
    assert same(found, expected)
    assert same(pipe(PROMPTS, 2, image=picture, segments=2, overlap=1, steps=2, progress=False), found)
    between = pipe("x", interpolate=True, steps=1, progress=False)
    assert between.frames.shape == (3 * 3 + 1, 16, 16, 3)
    clip = np.stack([picture] * 3)
    assert same(pipe("x", video=clip, video_frames=1, steps=1, progress=False), pipe("x", image=picture, steps=1))
    with pytest.raises(UserError, match=r"image: an array must be uint8 \(H, W, 3\), and is float64"):
        pipe("x", image=picture / 255)
    with pytest.raises(UserError, match=r"video: an array must be uint8 \(T, H, W, 3\) of at least 2 frames"):
        pipe("x", video=clip[:1], video_frames=2)


def test_a_temporal_upsampler_makes_the_frames_between_all_of_a_video(with_frames, tmp_path):
    pipe = vidlab.load(str(with_frames))
    pipe = replace(pipe, conditioning=FrameReplacement(EveryNth(2)))
    clip = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    found = pipe(PROMPTS, video=clip, interpolate=True, steps=1, progress=False)
    assert found[1].frames.shape == (9, 16, 16, 3)
    assert np.array_equal(found[1].frames[::2], clip)
    assert not np.array_equal(found[1].frames[1], clip[0])
    with pytest.raises(UserError, match="all of its frames are given"):
        pipe("x", video=clip, interpolate=True, video_frames=2)
    with pytest.raises(UserError, match="at least 2 frames"):
        pipe("x", video=clip[:1], interpolate=True)


def test_what_a_model_cannot_take(checkpoint):
    pipe = vidlab.load(checkpoint)
    with pytest.raises(UserError, match=r"image, segments: this model was trained without conditioning on frames"):
        pipe("x", image=np.zeros((16, 16, 3), np.uint8), segments=2)
    with pytest.raises(UserError, match="at least one prompt"):
        pipe([])
    with pytest.raises(UserError, match="load=nowhere"):
        vidlab.load("nowhere")


def test_saving_and_showing(checkpoint, tmp_path):
    found = vidlab.load(checkpoint)(PROMPTS, steps=1, fps=4, progress=False)
    assert found.frames.shape[0] == 4 and found.frames.shape[2] > found[0].frames.shape[2]
    assert found[1:][0].prompt == PROMPTS[1]
    for name in ("all.mp4", "all.gif"):
        assert read_frames(found.save(tmp_path / "new" / name)).shape[0] == 4
    assert found[0].save(tmp_path / "one.mp4").is_file()
    originals = found.save(tmp_path / "folder") / "originals"
    assert np.array_equal(read_frames(originals / "001.mp4"), found[1].frames)
    assert (originals / "001.txt").read_text() == PROMPTS[1] + "\n"
    with pytest.raises(UserError, match=r"x\.avi: videos are saved as \.mp4 or \.gif"):
        found.save(tmp_path / "x.avi")
    shown = vidlab.load(checkpoint)("a <b> & c", steps=1, progress=False)
    assert shown._repr_html_().startswith('<img title="a &lt;b&gt; &amp; c" src="data:image/gif;base64,')
    assert shown[0]._repr_html_() == shown._repr_html_()


def test_an_export_and_another_size(checkpoint):
    folder = exported(checkpoint)
    pipe = vidlab.load(folder)
    assert same(pipe(PROMPTS, 2, steps=2, progress=False), by_program(checkpoint))
    assert vidlab.load(folder, frames=8).clip_shape == (8, 16, 16)
    assert pipe.to("cpu") is pipe and pipe.device == torch.device("cpu")


def test_importing_vidlab_imports_nothing():
    code = "import sys, vidlab; print([n for n in ('torch', 'hydra', 'numpy', 'lightning') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = vidlab.lod
