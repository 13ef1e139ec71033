import pytest
import torch

from vidlab.autoencoders.haar import Haar
from vidlab.autoencoders.identity import Identity
from vidlab.clip import Conditions, DenoiserOutput
from vidlab.conditioning.base import Conditioning, TrainingClips
from vidlab.conditioning.frame_replacement import FrameReplacement
from vidlab.conditioning.patterns import Ends, EveryNth, First
from vidlab.diffusion.gaussian import GaussianObjective
from vidlab.diffusion.parameterizations import Velocity
from vidlab.diffusion.schedules import LinearPath
from vidlab.diffusion.time_samplers import Uniform
from vidlab.diffusion.weightings import Constant
from vidlab.errors import UserError

OBJECTIVE = GaussianObjective(LinearPath(), Velocity(), Constant(), Uniform())


same = Identity()


@pytest.fixture
def x0():
    return torch.randn(2, 3, 4, 2, 2)


@pytest.mark.parametrize(
    ("pattern", "known"),
    [
        (First(1), [1, 0, 0, 0, 0]),
        (First(3), [1, 1, 1, 0, 0]),
        (Ends(), [1, 0, 0, 0, 1]),
        (EveryNth(2), [1, 0, 1, 0, 1]),
    ],
)  # fmt: skip
def test_patterns(pattern, known):
    assert pattern.frames(5).int().tolist() == known


def test_the_known_frame_enters_clean_and_its_error_does_not_count(x0, make_draw):
    conditions = FrameReplacement(image_dropout=0.0).for_training(TrainingClips(x0, x0, make_draw(), 0), same)
    assert conditions.controls is None and conditions.known.mask.flatten(1).tolist() == [[1, 0, 0, 0]] * 2
    corrupted = OBJECTIVE.prepare(x0, Conditions(known=conditions.known), make_draw())
    plain = OBJECTIVE.prepare(x0, Conditions(), make_draw())
    assert torch.equal(corrupted.input.latents[:, :, 0], x0[:, :, 0])
    assert torch.equal(corrupted.input.latents[:, :, 1:], plain.input.latents[:, :, 1:])
    wrong = plain.target.clone()
    wrong[:, :, 0] += 100
    assert OBJECTIVE.loss(corrupted, DenoiserOutput(wrong)).total == 0
    wrong[:, :, 1] += 2.0  # one of three counted frames is off by 2: 4 / 3
    assert OBJECTIVE.loss(corrupted, DenoiserOutput(wrong)).total.item() == pytest.approx(4 / 3, rel=1e-5)


def test_a_dropped_image_is_noise_like_the_rest_and_supervised(x0, make_draw):
    conditions = FrameReplacement(image_dropout=1.0).for_training(TrainingClips(x0, x0, make_draw(), 0), same)
    corrupted = OBJECTIVE.prepare(x0, Conditions(known=conditions.known), make_draw())
    plain = OBJECTIVE.prepare(x0, Conditions(), make_draw())
    assert torch.equal(corrupted.input.latents, plain.input.latents)
    assert torch.equal(corrupted.loss_mask, torch.ones(2, 1, 4, 1, 1))


def test_dropout_is_a_keyed_share(make_draw):
    from vidlab.randomness import KeyedRNG

    keys = tuple(str(i) for i in range(4000))
    x0 = torch.zeros(4000, 3, 2, 1, 1)
    clips = TrainingClips(x0, x0, KeyedRNG(0, keys, (0,) * 4000), 0)
    known = FrameReplacement().for_training(clips, same).known
    share = 1 - known.mask[:, 0, 0].mean().item()
    assert abs(share - 0.08) < 3 * (0.08 * 0.92 / 4000) ** 0.5
    clips = TrainingClips(x0[:10], x0[:10], KeyedRNG(0, keys[:10], (0,) * 10), 5)
    part = FrameReplacement().for_training(clips, same).known
    assert torch.equal(part.mask, known.mask[:10])


def test_given_frames_are_whole_latent_frames():
    haar, pixels = Haar(frames=4, height=4, width=4), torch.rand(1, 3, 8, 8, 8) * 2 - 1
    frames = torch.arange(8)[None] < 4
    known = FrameReplacement().for_inference(pixels, frames, haar).known
    assert known.mask.flatten().tolist() == [1, 0]
    torch.testing.assert_close(known.latents[:, :, 0], haar.encode(pixels)[:, :, 0])
    with pytest.raises(UserError, match=r"1 of 8 frames are given.*holds 4 frames.*autoencoder=haar_frames"):
        FrameReplacement().for_inference(pixels, torch.arange(8)[None] < 1, haar)


def test_nothing_given_changes_nothing(x0):
    known = FrameReplacement().for_inference(x0, torch.zeros(2, 4, dtype=torch.bool), same).known
    latents = torch.randn_like(x0)
    assert torch.equal(known.put_into(latents), latents)


def test_arguments():
    assert isinstance(FrameReplacement(), Conditioning)
    for settings, message in (
        ({"image_dropout": 1.5}, "image_dropout=1.5"),
        ({"unconditional": "zero"}, "choose own or noised"),
    ):
        with pytest.raises(UserError, match=message):
            FrameReplacement(**settings)
    with pytest.raises(UserError, match="count=0"):
        First(0)
    with pytest.raises(UserError, match="n=1"):
        EveryNth(1)


def test_frames_usually_given_are_those_of_training():
    counts = {str(p): FrameReplacement(p).default_num_frames(8) for p in (First(1), First(3), Ends(), EveryNth(2))}
    assert list(counts.values()) == [1, 3, 1, 1]


@pytest.mark.parametrize(
    ("pattern", "length"), [(First(1), 1), (Ends(), 1), (Ends(), 2), (First(3), 3), (EveryNth(2), 1)]
)
def test_a_clip_that_would_be_given_away_is_trained_without(pattern, length, make_draw):
    conditioning, x0 = FrameReplacement(pattern, image_dropout=0.0), torch.randn(2, 3, length, 2, 2)
    assert conditioning.gives_all(length) and not conditioning.gives_all(length + 2)
    known = conditioning.for_training(TrainingClips(x0, x0, make_draw(), 0), same).known
    assert not known.mask.any()
    corrupted = OBJECTIVE.prepare(x0, Conditions(known=known), make_draw())
    plain = OBJECTIVE.prepare(x0, Conditions(), make_draw())
    assert torch.equal(corrupted.input.latents, plain.input.latents) and corrupted.loss_mask.all()


def test_key_frames_are_told_by_their_stride(x0, make_draw):
    conditioning = FrameReplacement(Ends(), image_dropout=0.0, key_frames=First(1), stride=2)
    clips = TrainingClips(x0, x0, make_draw(), 0, strides=torch.tensor([2.0, 3.0]))
    known = conditioning.for_training(clips, same).known
    assert known.mask.flatten(1).tolist() == [[1, 0, 0, 1], [1, 0, 0, 0]]
    with pytest.raises(ValueError, match="strides"):
        conditioning.for_training(TrainingClips(x0, x0, make_draw(), 0), same)
