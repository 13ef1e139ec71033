"""A temporal upsampler behind a generator."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from vidlab.errors import UserError
from vidlab.lab.compose import build_module
from vidlab.pipelines.video_pipeline import VideoPipeline, behind

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALL = (
    "data.frames=4", "data.height=8", "data.width=8", "model.backbone.width=48", "model.backbone.heads=2",
    "model.backbone.depth=1", "text_encoder.width=16", "text_encoder.heads=2", "sampler.steps=1", "model.token=[1,4,4]",
)  # fmt: skip


@cache
def pipeline(*words: str) -> VideoPipeline:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        module = build_module(compose("train", [*SMALL, *words]))
    module.configure_model()
    with torch.no_grad():  # a new model makes gray alone
        for parameter in module.denoiser.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module.eval().pipeline


def test_frames_between_those_of_the_generator():
    generator, upsampler = pipeline("autoencoder=haar_frames"), pipeline("conditioning=key_frames")
    plain = generator("a red square", num_videos=2, progress=False)
    filled = behind(generator, upsampler)("a red square", num_videos=2, progress=False)
    for before, after in zip(plain, filled, strict=True):
        assert after.frames.shape == (7, 8, 8, 3), "4 frames, and 3 between them"
        assert np.array_equal(after.frames[::2], before.frames)
        assert not np.array_equal(after.frames[1::2], before.frames[:-1])
    again = behind(generator, upsampler)("a red square", num_videos=1, progress=False)
    assert np.array_equal(again[0].frames, filled[0].frames), "whatever the batch"


def test_what_is_no_upsampler_is_refused():
    generator, upsampler = pipeline("autoencoder=haar_frames"), pipeline("conditioning=key_frames")
    with pytest.raises(UserError, match=r"upsampler=here: it is no temporal upsampler.*conditioning=key_frames"):
        behind(upsampler, replace(generator, source="here"))
    with pytest.raises(UserError, match=r"its videos are \(8, 16\) pixels, those before it \(8, 8\)"):
        behind(generator, replace(upsampler, clip_shape=(4, 8, 16)))
