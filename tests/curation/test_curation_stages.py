"""What single stages compute, against values that are worked out by hand or published."""

import numpy as np
import pytest
import torch

from vidlab.curation.engine.records import Clip, Crop, SourceVideo
from vidlab.curation.engine.video_file import VideoFile, spread
from vidlab.curation.stages.aesthetic import LaionAesthetic, aesthetic_head, load_head
from vidlab.curation.stages.filters import BestShare, Range
from vidlab.curation.stages.flow import DISFlow
from vidlab.curation.stages.perceptual import FrameDistances, JumpCuts, MotionAgain, frame_distances
from vidlab.curation.stages.scenes import ContentCuts, CutAt
from vidlab.curation.stages.signal import NoiseAndSharpness, noise_level, sharpness
from vidlab.curation.stages.slicing import Slice
from vidlab.curation.stages.technical import asymmetric_fit, shape_of
from vidlab.curation.stages.text import Box, EdgeCrop, cropped_area
from vidlab.data.video import encode
from vidlab.errors import CorruptClipError, UserError
from vidlab.perceptual.lpips import LPIPS
from vidlab.perceptual.transnet import TransNetV2, color_histograms, load_transnet
from vidlab.tensors import save_tensors

CLIP = Clip("a.mp4", 10, 110, 25.0, 100, 200)


def with_series(name: str, values, clip: Clip = CLIP) -> Clip:
    return Clip(clip.source, clip.start, clip.end, clip.fps, clip.height, clip.width, series={name: tuple(values)})


def video(tmp_path, frames: np.ndarray, fps: float = 8) -> tuple[VideoFile, Clip]:
    file = tmp_path / "v.mp4"
    file.write_bytes(encode(frames, fps, lossless=True))
    return VideoFile(SourceVideo("v.mp4", str(file))), Clip("v.mp4", 0, len(frames), fps, *frames.shape[1:3])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_slices_are_whole_frames():
    clip = Clip("a.mp4", 0, 1000, 29.97, 10, 10)  # 16 s are 479.52 frames
    assert [(c.start, c.end) for c in Slice(16).decide(clip, "slice")] == [(0, 480), (480, 960), (960, 1000)]


def test_small_frames_are_those_of_a_whole_decode(tmp_path):
    frames = noise(70, 16, 20)
    file, clip = video(tmp_path, frames)
    first, second = clip.part(3, 9), clip.part(20, 65)
    found = list(file.small_frames([first, second], 1 << 20, every=2))
    assert [(c, at, len(f)) for c, at, f in found] == [(first, 0, 3), (second, 0, 23)]
    np.testing.assert_array_equal(found[0][2], frames[3:9:2])
    np.testing.assert_array_equal(found[1][2], frames[20:65:2])
    np.testing.assert_array_equal(file.frames(second, [0, 44]), frames[[20, 64]])
    whole = list(file.small_frames([clip], 1 << 20))
    assert [at for _, at, _ in whole] == [0, 32, 64]  # in chunks
    np.testing.assert_array_equal(np.concatenate([f for _, _, f in whole]), frames)
    with pytest.raises(CorruptClipError, match="the video ends before"):
        list(file.small_frames([clip.part(0, 71)], 8))


def test_small_frames_are_cropped_and_averaged(tmp_path):
    frames = np.zeros((2, 40, 40, 3), np.uint8)
    frames[:, 10:30, 20:40] = 200
    file, clip = video(tmp_path, frames)
    from dataclasses import replace

    (_, _, small), *_ = file.small_frames([replace(clip, crop=Crop(10, 20, 20, 20))], 5)
    assert small.shape == (2, 5, 5, 3) and (small == 200).all()
    (_, _, small), *_ = file.small_frames([clip], 20)
    assert small.shape == (2, 20, 20, 3) and abs(int(small[0, 10, 15, 0]) - 200) <= 1 and small[0, 0, 0, 0] <= 1


def test_distances_are_those_of_pairs(tmp_path):
    torch.manual_seed(0)
    model, frames = LPIPS("alex"), noise(36, 40, 40)
    file, clip = video(tmp_path, frames)
    parts = [clip.part(0, 34), clip.part(34, 36)]
    found = frame_distances(model, file, parts, 40, 1)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = model(pixels[:-1], pixels[1:]).tolist()
    assert found[parts[0].id] == pytest.approx(expected[:33], abs=1e-5)
    assert found[parts[1].id] == pytest.approx(expected[34:], abs=1e-5)


@pytest.mark.parametrize("measure", [FrameDistances, MotionAgain])
def test_settings_of_distances(measure):
    for settings, message in (({"every": 0}, "every=0"), ({"short_side": 30}, "short_side=30")):
        with pytest.raises(UserError, match=message):
            measure(**settings)
    with pytest.raises(UserError, match="there is no such file"):
        measure(weights_path="none.ckpt").version()
    versions = [measure(weights_path="asset:lpips-alexnet.ckpt").version(), measure(every=2).version()]
    assert [version == measure().version() for version in versions] == [True, False]


def test_the_rule_of_jump_cuts():
    rule = JumpCuts()
    calm = np.full(99, 0.02)
    # one outlier among n equal values has z = sqrt(n - 1), here 9.9, whatever its height
    for height, cut in ((0.36, True), (0.21, True), (0.19, False)):
        distances = calm.copy()
        distances[40] = height
        assert rule.cuts(distances) == ([40] if cut else [])
    # 12 outliers of 99: z = sqrt(87 / 12) = 2.69, above 2 and below 3.2: only those above .35 count
    distances = calm.copy()
    distances[::9][:12] = 0.3
    distances[np.arange(0, 99, 9)] = 0.3
    distances[98] = 0.3
    assert rule.cuts(distances) == []
    distances[distances == 0.3] = 0.4
    assert len(rule.cuts(distances)) == 12
    # 25 outliers: z = sqrt(74 / 25) = 1.72
    distances = np.concatenate([np.full(74, 0.02), np.full(25, 0.9)])
    assert rule.cuts(distances) == [] and rule.cuts(np.zeros(9)) == []


def test_parts_between_cuts():
    distances = np.full(99, 0.01)
    distances[39], distances[70] = 0.5, 0.6
    parts = JumpCuts(min_frames=30, max_frames=35).decide(with_series("lpips", distances), "cut")
    assert [(p.start, p.end) for p in parts] == [(10, 50), (50, 81), (81, 110)]
    assert [p.reason.split(" frames")[0] for p in parts] == ["more than 35", "", "fewer than 30"]
    assert all(p.scores["motion"] == pytest.approx(0.01) and not p.series for p in parts)
    # every second frame: what lies between two of them, one from either side of a cut, is in no part
    distances = np.full(49, 0.01)
    distances[20] = 0.5
    parts = JumpCuts(every=2, min_frames=2).decide(with_series("lpips", distances), "cut")
    assert [(p.start, p.end) for p in parts] == [(10, 51), (52, 110)]
    (whole,) = JumpCuts(min_frames=1).decide(with_series("lpips", ()), "cut")
    assert (whole.start, whole.end, whole.scores["motion"]) == (10, 110, 0.0)


def test_subtitles_go_and_text_in_the_middle_stays():
    crop = EdgeCrop(0.2)
    subtitle, title, logo = Box(0.85, 0.3, 0.95, 0.7), Box(0.4, 0.3, 0.6, 0.7), Box(0.02, 0.9, 0.1, 0.98)

    def margins(*boxes: Box) -> dict[str, float]:
        return {side: round(share, 6) for side, share in crop.margins(boxes).items() if share}

    assert margins(subtitle) == {"bottom": 0.15}
    assert margins(title) == {} and margins(Box(0.75, 0.3, 0.95, 0.7)) == {}  # it reaches into the middle
    assert margins(logo) == {"right": 0.1}  # 0.1 of either side: the first by name
    assert margins(subtitle, logo, title) == {"bottom": 0.15, "right": 0.1}
    assert margins(Box(0.85, 0.01, 0.95, 0.1), subtitle) == {"bottom": 0.15}  # gone with the subtitle
    assert cropped_area(Crop(0, 0, 100, 200), {"top": 0.0, "bottom": 0.15, "left": 0.0, "right": 0.1}) == (
        0,
        0,
        84,
        180,
    )
    assert cropped_area(Crop(6, 4, 80, 80), {"top": 0.1, "bottom": 0.0, "left": 0.0, "right": 0.0}) == (14, 4, 72, 80)
    (kept,) = crop.decide(with_series("text", (*subtitle, *title)), "ocr")
    assert kept.crop == (0, 0, 84, 200) and not kept.series
    (same,) = crop.decide(with_series("text", title), "ocr")
    assert same.crop is None and same.id == CLIP.id


def test_ranges_and_shares():
    scored = [Clip("a", 0, 1, 1.0, 1, 1, scores={"m": value}) for value in (0.1, 0.2, 0.3)]
    found = [Range("m", 0.2, 0.2).decide(clip, "s")[0].reason for clip in scored]
    assert found == ["m below 0.2", "", "m above 0.2"]
    assert BestShare("m", 0.4).fitted([1.0, 2.0, 3.0, 4.0, 5.0]) == Range("m", 4.0)
    assert BestShare("m", 0.01).fitted([1.0, 2.0]) == Range("m", 2.0)
    with pytest.raises(UserError, match="share=0"):
        BestShare("m", 0)


def test_content_cuts_are_exact(tmp_path):
    frames = np.repeat(noise(3, 32, 32), 20, axis=0)
    file, clip = video(tmp_path, frames)
    (found,) = ContentCuts(short_side=32).measure(file, [clip])
    assert found.series["cuts"] == (20.0, 40.0)
    parts = CutAt(min_frames=1).decide(with_series("cuts", (20.0, 40.0), clip), "cut")
    assert [(p.start, p.end) for p in parts] == [(0, 20), (20, 40), (40, 60)]


def test_flow_is_in_short_sides_a_second(tmp_path):
    import cv2

    texture = cv2.GaussianBlur(noise(64, 96), (0, 0), 2)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    frames = np.stack([np.roll(texture, 2 * number, axis=1) for number in range(8)])  # 2 pixels a frame, 16 a second
    file, clip = video(tmp_path, frames)
    (moving,) = DISFlow(short_side=64).measure(file, [clip])
    assert moving.scores["flow"] == pytest.approx(16 / 64, rel=0.1)
    file, clip = video(tmp_path, np.repeat(texture[None], 8, axis=0))
    assert DISFlow(short_side=64).measure(file, [clip])[0].scores["flow"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        (DISFlow, {"seconds": 0}),
        (DISFlow, {"short_side": 8}),
        (ContentCuts, {"min_scene_frames": 0}),
        (ContentCuts, {"short_side": 0}),
        (NoiseAndSharpness, {"frames": 0}),
    ],
)
def test_settings_with_which_no_clip_can_be_measured(stage, settings):
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=f"{name}={value}"):
        stage(**settings)


def test_the_shape_of_a_distribution_is_found():
    assert shape_of(2 / np.pi) == pytest.approx(2, abs=1e-6)  # Gauss
    assert shape_of(0.5) == pytest.approx(1, abs=1e-6)  # Laplace
    values = np.random.default_rng(0).laplace(size=200_000)
    alpha, mean, left, right = asymmetric_fit(values)
    assert (alpha, left, right) == pytest.approx((1, 2, 2), rel=0.03) and abs(mean) < 0.01


def test_the_aesthetic_head_reads_its_published_form(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    head = aesthetic_head(24)
    named = {f"layers.{place}": layer for place, layer in zip((0, 2, 4, 6, 7), head, strict=True)}
    state = {f"{name}.{kind}": value for name, one in named.items() for kind, value in one.state_dict().items()}
    torch.save(state, tmp_path / "head.pth")
    features = torch.randn(3, 24)
    torch.testing.assert_close(load_head(tmp_path / "head.pth", 24)(features), head(features))
    with pytest.raises(UserError, match=r"layers\.0\.weight is of shape \(1024, 24\), expected \(1024, 768\)"):
        load_head(tmp_path / "head.pth", 768)


def test_the_aesthetic_score_of_a_clip(tmp_path, monkeypatch):
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**size, image_size=16, patch_size=8, projection_dim=24))
    prepare = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    clip, head = (
        tmp_path / "clip",
        torch.nn.Sequential(*map(torch.nn.Linear, (24, 1024, 128, 64, 16), (1024, 128, 64, 16, 1))),
    )
    tower.save_pretrained(clip)
    net = torch.nn.Module()  # as published, with dropout behind the first three
    net.layers = torch.nn.Sequential(*(part for layer in head[:3] for part in (layer, torch.nn.Dropout())), *head[3:])
    torch.save(net.state_dict(), tmp_path / "head.pth")
    file, whole = video(tmp_path, frames := noise(4, 16, 20))
    stage = LaionAesthetic(str(clip), str(tmp_path / "head.pth"), frames=2)
    with pytest.raises(UserError, match="no readable CLIP with its image processor"):
        stage.measure(file, [whole])
    prepare.save_pretrained(clip)
    (found,) = stage.measure(file, [whole])
    pixels = prepare(images=list(frames[[1, 3]]), return_tensors="pt")["pixel_values"]
    features = tower.eval().requires_grad_(False)(pixel_values=pixels).image_embeds
    head.requires_grad_(False)
    assert found.scores["aesthetic"] == pytest.approx(float(head(features / features.norm(dim=1, keepdim=True)).mean()))


def test_frames_are_spread_evenly():
    assert spread(100, 5) == [10, 30, 50, 70, 90] and spread(3, 5) == [0, 0, 1, 2, 2]


def test_color_histograms():
    frames = torch.zeros(1, 2, 27, 48, 3, dtype=torch.uint8)
    frames[0, 1, :, :24] = torch.tensor([255, 32, 0], dtype=torch.uint8)  # bin 7 * 64 + 1 * 8 + 0
    counts = color_histograms(frames)
    assert counts[0, 0, 0] == 27 * 48 and counts[0, 1, 456] == 27 * 24 and counts.sum() == 2 * 27 * 48


def test_weights_of_another_shape_are_no_transnet(tmp_path):
    weights = {name: value for name, value in TransNetV2().state_dict().items() if value.dim()}
    save_tensors(weights | {"fc1.bias": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"fc1\.bias has shape \(3,\), expected \(1024,\)"):
        load_transnet(str(tmp_path / "other.safetensors"))
    save_tensors(weights, tmp_path / "own.safetensors")
    assert load_transnet(str(tmp_path / "own.safetensors")).fc1.bias.equal(weights["fc1.bias"])


@pytest.mark.slow
def test_windows_of_transnet():
    torch.manual_seed(0)
    model, clip = TransNetV2(), torch.randint(0, 256, (60, 27, 48, 3), dtype=torch.uint8)
    found = model.transitions(clip)
    padded = torch.cat([clip[:1].expand(25, -1, -1, -1), clip, clip[-1:].expand(65, -1, -1, -1)])
    assert found.shape == (60,)
    torch.testing.assert_close(found[50:], model(padded[None, 50:150])[0, 25:35])


def test_noise_and_sharpness():
    rng, slope = np.random.default_rng(0), np.add.outer(np.arange(200.0), np.arange(200.0)) / 4
    assert noise_level(slope) == pytest.approx(0, abs=1e-9)  # a slope is no noise
    assert noise_level(slope + rng.normal(0, 5, slope.shape)) == pytest.approx(5, rel=0.03)
    edge = np.where(np.arange(200) < 100, 0.0, 200.0)
    assert sharpness(np.tile(edge, (200, 1))) == 1.0 and sharpness(np.zeros((9, 9))) == 0.0
    # the slope in the middle of an edge blurred by a Gaussian of 3 pixels: erf(0.5 / (3 sqrt 2)) = 0.1324
    from scipy.special import erf

    blurred = 100 * (1 + erf((np.arange(200) - 99.5) / (3 * np.sqrt(2))))
    assert sharpness(np.tile(blurred, (200, 1))) == pytest.approx(0.1324, abs=1e-3)


def test_subtitles_are_read():
    pytest.importorskip("rapidocr")
    import cv2

    from vidlab.curation.stages.text import text_reader

    frame = np.full((240, 400, 3), 90, np.uint8)
    assert list(text_reader()(frame, 0.5)) == []
    cv2.putText(frame, "HELLO WORLD", (90, 225), cv2.FONT_HERSHEY_SIMPLEX, 1, (255, 255, 255), 2, cv2.LINE_AA)
    (box,) = text_reader()(frame, 0.5)
    assert 0.8 < box.top < 0.87 and 0.93 < box.bottom < 1 and 0.18 < box.left < 0.25 and 0.7 < box.right < 0.8
    assert EdgeCrop().margins([box]) == {"top": 0.0, "bottom": 1 - box.top, "left": 0.0, "right": 0.0}


@pytest.mark.network
def test_brisque_is_that_of_its_package():
    import cv2

    from vidlab.curation.stages.technical import brisque

    frame = cv2.GaussianBlur(noise(96, 128), (0, 0), 1.5)
    frame = cv2.normalize(frame, None, 0, 255, cv2.NORM_MINMAX)
    # the 36 features are those of brisque 0.2.0 to 3e-13, and so is the model's value of them
    assert brisque(frame) == pytest.approx(44.27324807, abs=1e-6)
