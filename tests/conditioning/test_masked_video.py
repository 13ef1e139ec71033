import pytest
import torch

from vidlab.clip import LatentShape, Stride
from vidlab.conditioning.base import Conditioning, TrainingClips
from vidlab.conditioning.masked_video import TASKS, MaskedVideo, Stage, folded_mask
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG

KEYS = tuple(str(i) for i in range(3000))
MANY = KeyedRNG(0, KEYS, (0,) * len(KEYS))


def always(task: str, kept=(0.0, 1.0)) -> MaskedVideo:
    return MaskedVideo([Stage({task: 1.0}, kept)])


class Halved:
    """An autoencoder of two frames per latent: their mean."""

    stride = Stride(2, 1, 1)

    def encode(self, pixels):
        return pixels.unflatten(2, (-1, 2)).mean(3)


halved = Halved()
CAUSAL = Stride(4, 8, 8, first_frame_alone=True)


@pytest.mark.parametrize(
    ("task", "kept"),
    [
        ("t2v", [0] * 6), ("i2v", [1, 0, 0, 0, 0, 0]), ("transition", [1, 0, 0, 0, 0, 1]), ("clear", [1] * 6),
    ],
)  # fmt: skip
def test_tasks_that_are_always_the_same(task, kept, make_draw):
    assert always(task).kept_frames(6, make_draw(), 0).int().tolist() == [kept, kept]


def test_continuation_and_random_keep_a_drawn_number():
    # floor(0.3 * 6) = 1 to ceil(0.6 * 6) = 4 frames, all equally often
    for task in ("continuation", "random"):
        frames = always(task, (0.3, 0.6)).kept_frames(6, MANY, 0)
        counts = torch.bincount(frames.sum(1), minlength=7).tolist()
        assert counts[0] == counts[5] == counts[6] == 0
        assert all(abs(n - 750) < 4 * (3000 * 0.25 * 0.75) ** 0.5 for n in counts[1:5])
        starts = (frames.int().diff(dim=1) <= 0).all()
        assert bool(starts) == (task == "continuation")
    # each place equally often
    share = always("random", (0.5, 0.5)).kept_frames(6, MANY, 0).float().mean(0)
    assert (share - 0.5).abs().max() < 4 * (0.25 / 3000) ** 0.5


def test_ratios_are_normalized_and_zero_is_never_drawn():
    stage = Stage({"t2v": 1, "clear": 0, "i2v": 3})
    assert [stage.task(u) for u in (0.0, 0.2499, 0.25, 0.9999)] == ["t2v", "t2v", "i2v", "i2v"]


def test_the_curriculum_changes_stage_with_the_step():
    video = MaskedVideo([Stage({"clear": 1}, until_step=10), Stage({"i2v": 1}, until_step=20), Stage({"t2v": 1})])
    tasks = [next(iter(video.stage(step).ratios)) for step in (0, 9, 10, 19, 20, 10**6)]
    assert tasks == ["clear", "clear", "i2v", "i2v", "t2v", "t2v"]


def test_the_mask_of_an_image_by_hand():
    # Open-Sora Plan v1.3: 93 frames, 24 latent frames; the first has all four channels 0 (kept), all others are 1
    frames = torch.arange(93)[None] == 0
    mask = folded_mask(frames, (24, 3, 5), CAUSAL)
    assert mask.shape == (1, 4, 24, 3, 5)
    assert not mask[:, :, 0].any() and mask[:, :, 1:].all()
    # the third frame of an even clip is the first channel of the second latent frame
    assert folded_mask(torch.arange(4)[None] == 2, (2, 1, 1), halved.stride).flatten().tolist() == [1, 0, 1, 1]


def test_the_mask_of_a_single_frame_has_as_many_channels():
    assert folded_mask(torch.tensor([[True]]), (1, 3, 5), CAUSAL).shape == (1, 4, 1, 3, 5)


def test_masked_pixels_are_black_before_encoding():
    pixels = torch.full((1, 3, 4, 2, 2), 0.5)
    controls = always("t2v").for_inference(pixels, torch.arange(4)[None] == 0, halved).controls
    masked, mask = controls.channels.split([3, 2], dim=1)
    assert masked[0, 0, :, 0, 0].tolist() == [-0.25, -1.0]  # mean of 0.5 and -1, and black
    assert mask[0, :, :, 0, 0].tolist() == [[0, 1], [1, 1]]
    assert controls.mask[0, 0, :, 0, 0].tolist() == [0, 0]
    assert always("t2v").control_channels(LatentShape(8, 24, 4, 4), Stride(4, 8, 8)) == (8, 4)


def test_noise_on_kept_frames_has_the_published_law():
    video = MaskedVideo([Stage({"clear": 1})])
    clips = TrainingClips(torch.zeros(3000, 3, 2, 4, 4), torch.zeros(3000, 3, 1, 4, 4), MANY, 0)
    controls = video.for_training(clips, halved).controls
    levels = controls.channels[:, :3].flatten(1).std(1) * 2**0.5  # the mean of two frames has half the variance
    clean = levels < 1e-6
    assert abs(clean.float().mean() - 0.05) < 4 * (0.05 * 0.95 / 3000) ** 0.5
    logarithms = levels[~clean].log()
    assert abs(logarithms.mean() + 3) < 0.04 and abs(logarithms.std() - 0.5) < 0.04
    # what is discarded stays black
    pixels, x0, two = torch.zeros(2, 3, 2, 4, 4), torch.zeros(2, 3, 1, 4, 4), KeyedRNG(0, ("a", "b"), (0, 0))
    hidden = always("t2v").for_training(TrainingClips(pixels, x0, two, 0), halved).controls
    assert torch.equal(hidden.channels[:, :3], -torch.ones(2, 3, 1, 4, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stage({"walk": 1}), r"no task is called \['walk'\]; there are t2v, i2v"),
        (lambda: Stage({"t2v": 0}), "one above 0"),
        (lambda: Stage({"t2v": 1}, (0.5, 0.25)), "0 <= least <= most <= 1"),
        (lambda: MaskedVideo([]), "until_step"),
        (lambda: MaskedVideo([Stage({"t2v": 1}, until_step=5)]), "null in the last"),
        (lambda: MaskedVideo([Stage({"t2v": 1}), Stage({"t2v": 1})]), "must grow"),
        (lambda: MaskedVideo([Stage({"t2v": 1})], clean=2), "clean=2"),
    ],
)
def test_arguments(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_it_is_a_conditioning():
    assert isinstance(always(TASKS[0]), Conditioning)


def test_tasks_of_one_batch_may_differ_where_numbers_are_drawn_elsewhere(make_draw, monkeypatch):
    # numbers drawn on a GPU come as tensors of that device; the frames are put together on the host
    mixed = MaskedVideo([Stage(dict.fromkeys(TASKS, 1.0))])
    frames = mixed.kept_frames(6, MANY, 0)
    assert frames.device.type == "cpu" and len({tuple(row) for row in frames.tolist()}) > 20
