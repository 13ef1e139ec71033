"""A step's loss and gradient do not depend on how its clips are dealt to batches."""

import itertools

import pytest
import torch

from vidlab.clip import ClipBatch
from vidlab.conditioning.frame_replacement import FrameReplacement
from vidlab.conditioning.patterns import First
from vidlab.training.optimization.optimizers import OptimizerFactory
from vidlab.training.step_means import StepMeans, scale_gradients

KEYS = "abcdefgh"


def test_means_of_unequal_batches_by_hand():
    # 6 elements of mean 2, then 2 of mean 10, then 4 of mean 1: (12 + 20 + 4) / 12 = 3
    means = StepMeans()
    shares = []
    for value, counted in ((2.0, 6), (10.0, 2), (1.0, 4)):
        shares.append(means.share(torch.tensor(float(counted)), 8.0))
        means.add({"loss": torch.tensor(value)}, shares[-1])
    found = means.close(lambda sums: sums, 1)
    assert found.values["loss"].item() == 3
    # a trainer averages over three batches: (2 * 6/8 + 10 * 2/8 + 1 * 4/8) / 3, which the factor turns into 3
    assert sum(v * s for v, s in zip((2, 10, 1), shares, strict=True)) / 3 * found.factor == pytest.approx(3)
    with pytest.raises(RuntimeError, match="without a batch"):
        means.close(lambda sums: sums, 1)


def test_ranks_count_by_what_they_have():
    # the other rank has half as much, of mean 5: (3 * 4 + 5 * 2) / 6
    means = StepMeans()
    means.add({"loss": torch.tensor(3.0)}, means.share(torch.tensor(4.0), 4.0))
    other = torch.tensor([5 * 0.5, 0.5])
    found = means.close(lambda sums: sums + other, 2)
    assert found.values["loss"].item() == pytest.approx(22 / 6)
    assert found.factor.item() == pytest.approx(2 / 1.5)


def test_equal_batches_change_no_bit():
    means, values = StepMeans(), torch.rand(3)
    for value in values:
        assert means.share(torch.tensor(48.0), 48.0) == 1
        means.add({"loss": value}, torch.tensor(1.0))
    assert means.close(lambda sums: sums, 1).factor == 1


def test_gradients_are_scaled_where_there_are_some():
    with_one, without = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    with_one.grad = torch.tensor([1.0, 2.0])
    scale_gradients([with_one, without], torch.tensor(1.5))
    assert with_one.grad.tolist() == [1.5, 3.0] and without.grad is None


def dealt(whole: ClipBatch, sizes: tuple[int, ...]) -> list[ClipBatch]:
    """The clips of a batch in several."""
    ends = list(itertools.accumulate(sizes))
    parts = zip([0, *ends], ends, strict=False)
    return [
        ClipBatch(whole.pixels[a:b], whole.captions[a:b], whole.keys[a:b], whole.epochs[a:b], n, whole.fps[a:b])
        for n, (a, b) in enumerate(parts)
    ]


@pytest.mark.parametrize("sizes", [(1,) * 8, (4, 4), (2, 6), (5, 1, 2)], ids=str)
def test_a_step_is_the_same_however_it_accumulates(make_module, make_batch, make_trainer, sizes):
    def train(sizes: tuple[int, ...]) -> tuple[float, torch.Tensor]:
        conditioning = FrameReplacement(First(2), image_dropout=0.5)  # some clips count half
        module = make_module(
            conditioning=conditioning, optimizer=OptimizerFactory(torch.optim.SGD, lr=0.5), text_dropout=0.0
        )
        trainer = make_trainer(max_steps=1, accumulate_grad_batches=len(sizes))
        trainer.fit(module, dealt(make_batch(KEYS), sizes))
        weights = torch.cat([p.detach().flatten() for p in module.denoiser.parameters()])
        return float(trainer.callback_metrics["train/loss"]), weights

    loss, weights = train((8,))
    again, dealt_weights = train(sizes)
    assert again == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(dealt_weights, weights, rtol=1e-4, atol=1e-6)


def test_validation_with_known_frames_does_not_depend_on_the_batch_size(make_module, make_batch, make_trainer):
    found = []
    for sizes in ((8,), (4, 4), (1,) * 8, (5, 3)):
        module, trainer = make_module(conditioning=FrameReplacement(First(2), image_dropout=0.5)), make_trainer()
        trainer.validate(module, dealt(make_batch(KEYS), sizes))
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)
