"""Temporal modules as a MotionAdapter: diffusers' video UNet with it predicts what ours does, or it is refused."""

import pytest
import torch
from diffusers import MotionAdapter, UNetMotionModel
from harivo_parts import example, make, saved_image_model, shaken

from vidlab.backbones.harivo.motion_adapter import write_motion_adapter
from vidlab.errors import UserError

ALIKE = {"mapping_layers": 0, "frame_tokens": 0, "temporal_norm": "clip"}


@torch.no_grad()
@pytest.mark.parametrize("parts", [("down", "mid", "up"), pytest.param(("down", "up"), marks=pytest.mark.slow)])
def test_the_video_unet_of_diffusers_predicts_the_same(tmp_path, parts):
    model, input = shaken(make(str(saved_image_model(tmp_path / "image")), temporal_parts=parts, **ALIKE)), example()
    told = write_motion_adapter(model, tmp_path / "adapter", 3)
    assert told.startswith(f"{len(model.temporal)} temporal modules of ")
    unet = UNetMotionModel.from_unet2d(model.body, MotionAdapter.from_pretrained(tmp_path / "adapter")).eval()
    text = input.text.tokens[:1].repeat_interleave(3, 0)  # the clip whose caption is not padded
    theirs = unet(input.latents[:1], input.embedded_t[:1], text).sample
    found = model(input).prediction[:1]
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=0)
    assert not torch.allclose(found, make(str(tmp_path / "image"), **ALIKE)(input).prediction[:1], atol=1e-3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mapping_layers": 1}, "mapping network before the UNet"), ({"frame_tokens": 3}, "tokens of each frame"),
        ({"temporal_norm": "frame"}, "statistics of each frame"), ({"temporal_parts": ["up"]}, "all of down and up"),
        ({"width": 32, "heads": 4}, r"\[8, 32\] groups"), ({"temporal": False}, "temporal=false"),
    ],
)  # fmt: skip
def test_what_diffusers_would_compute_otherwise_is_refused(tmp_path, setting, message):
    with pytest.raises(UserError, match=message):
        write_motion_adapter(make(**{**ALIKE, **setting}), tmp_path, 3)


def test_at_the_size_of_stable_diffusion_nothing_differs():
    from vidlab.backbones.harivo.model import HARIVO
    from vidlab.backbones.harivo.motion_adapter import differences, motion_adapter
    from vidlab.clip import LatentShape

    with torch.device("meta"):
        model = HARIVO(LatentShape(4, 24, 32, 32), 768, **ALIKE)
        assert list(differences(model)) == []
        adapter = motion_adapter(model, 24)
    assert sum(p.numel() for p in adapter.parameters()) == 453_209_280
