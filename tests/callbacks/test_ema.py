import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from vidlab.callbacks.ema import EMA, warmed_up_decay
from vidlab.errors import UserError
from vidlab.training.checkpoint_io import AtomicCheckpointIO, load_checkpoint


class Falling(LightningModule):
    """A parameter that falls by one in every optimizer step: 10, 9, 8, ...; and parts that are not averaged."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(10.0))
        self.frozen = nn.Parameter(torch.tensor(3.0), requires_grad=False)
        self.regularizer_modules = nn.ModuleDict({"term": nn.Linear(1, 1, bias=False)})
        self.register_buffer("count", torch.tensor(0.0))
        self.during: list[float] = []

    def training_step(self, batch, index):
        return self.weight + 0 * self.regularizer_modules["term"].weight.sum()

    def validation_step(self, batch, index):
        self.during.append(self.weight.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


BATCHES = list(torch.arange(40.0))
# step s averages with decay (1 + s) / (10 + s): 2/11, 3/12, 4/13
FIRST = 2 / 11 * 10 + 9 / 11 * 9
SECOND = 3 / 12 * FIRST + 9 / 12 * 8
THIRD = 4 / 13 * SECOND + 9 / 13 * 7


def test_the_decay_by_hand():
    assert [warmed_up_decay(s, 0.9999) for s in (0, 1, 2, 90)] == pytest.approx([0.1, 2 / 11, 0.25, 0.91])
    assert warmed_up_decay(10**6, 0.999) == 0.999
    assert warmed_up_decay(1, 0.1) == 0.1


def test_three_steps_by_hand(make_trainer):
    ema, module = EMA(), Falling()
    make_trainer(max_steps=3, callbacks=[ema]).fit(module, BATCHES)
    assert module.weight.item() == 7
    assert ema.average["weight"].item() == pytest.approx(THIRD, rel=1e-6)


def test_a_bounded_decay_by_hand(make_trainer):
    ema = EMA(decay=0.2)  # the second step's 0.25 is cut
    make_trainer(max_steps=2, callbacks=[ema]).fit(Falling(), BATCHES)
    assert ema.average["weight"].item() == pytest.approx(0.2 * FIRST + 0.8 * 8, rel=1e-6)


def test_accumulated_batches_are_one_step(make_trainer):
    ema, module = EMA(), Falling()
    trainer = make_trainer(max_steps=3, accumulate_grad_batches=4, callbacks=[ema])
    trainer.fit(module, BATCHES)
    assert module.weight.item() == 7 and trainer.global_step == 3
    assert ema.average["weight"].item() == pytest.approx(THIRD, rel=1e-6)


def test_only_what_is_trained_is_averaged(make_trainer):
    ema = EMA()
    make_trainer(callbacks=[ema]).fit(Falling(), BATCHES)
    assert set(ema.average) == {"weight"}


def test_the_average_is_float32(make_trainer):
    ema, module = EMA(), Falling().bfloat16()
    make_trainer(callbacks=[ema]).fit(module, BATCHES)
    assert module.weight.dtype == torch.bfloat16 and ema.average["weight"].dtype == torch.float32
    assert ema.average["weight"].item() == pytest.approx(SECOND, rel=1e-6)


def test_validation_sees_the_average_and_training_goes_on_bit_for_bit(make_trainer):
    ema, module = EMA(), Falling()
    with torch.no_grad():
        module.weight.fill_(torch.pi)
    raw = []
    module.on_validation_end = lambda: raw.append(module.weight.item())  # callbacks come first
    trainer = make_trainer(max_steps=4, val_check_interval=2, check_val_every_n_epoch=None, callbacks=[ema])
    trainer.fit(module, BATCHES, BATCHES[:1])
    start = torch.tensor(torch.pi)
    expected, average = [], start
    for step in range(1, 5):
        average = average.lerp(start - step, 1 - (1 + step) / (10 + step))
        expected.append(average.item())
    assert module.during == pytest.approx([expected[1], expected[3]], rel=1e-6)
    assert raw == [(start - 1 - 1).item(), (start - 1 - 1 - 1 - 1).item()]
    assert module.weight.item() == (start - 1 - 1 - 1 - 1).item()


def test_swapping_is_exact_and_may_be_nested(make_trainer):
    ema, module = EMA(), Falling()
    trainer = make_trainer(callbacks=[ema])
    trainer.fit(module, BATCHES)
    with torch.no_grad():
        module.weight.fill_(1 / 3)
    with ema.averaged(module):
        assert module.weight.item() == ema.average["weight"].item()
        ema.on_validation_start(trainer, module)  # already in
        assert module.weight.item() == ema.average["weight"].item()
    assert module.weight.item() == torch.tensor(1 / 3).item()
    with pytest.raises(RuntimeError), ema.averaged(module):
        raise RuntimeError
    assert module.weight.item() == torch.tensor(1 / 3).item()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_validation_leaves_the_training_weights(make_trainer, error):
    ema, module = EMA(), Falling()

    def fail(*_):
        assert module.weight.item() != 8
        raise error("in validation")

    module.validation_step = fail
    trainer = make_trainer(max_steps=4, val_check_interval=2, check_val_every_n_epoch=None, callbacks=[ema])
    with pytest.raises((error, SystemExit)):
        trainer.fit(module, BATCHES, BATCHES[:1])
    assert module.weight.item() == 8


def test_validation_before_training_uses_the_weights(make_trainer):
    module = Falling()
    make_trainer(callbacks=[EMA()]).validate(module, BATCHES[:1])
    assert module.during == [10]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_average_equals_one_that_ran_through(make_trainer, tmp_path, accumulate):
    path, through, first, resumed = tmp_path / "last.ckpt", EMA(), EMA(), EMA()

    def trainer(steps, ema):
        return make_trainer(
            max_steps=steps, accumulate_grad_batches=accumulate, callbacks=[ema], plugins=[AtomicCheckpointIO()]
        )

    trainer(6, through).fit(Falling(), BATCHES)
    before = trainer(3, first)
    before.fit(Falling(), BATCHES)
    before.save_checkpoint(path)
    assert load_checkpoint(path)["ema"]["weight"].item() == pytest.approx(THIRD, rel=1e-6)
    module = Falling()
    after = trainer(6, resumed)
    after.fit(module, BATCHES[3 * accumulate :], ckpt_path=path)
    assert after.global_step == 6 and module.weight.item() == 4
    assert torch.equal(resumed.average["weight"], through.average["weight"])


def test_a_stored_average_is_a_copy(make_trainer, tmp_path):
    ema, checkpoint = EMA(), {}
    trainer = make_trainer(callbacks=[ema])
    trainer.fit(Falling(), BATCHES)
    ema.on_save_checkpoint(trainer, trainer.lightning_module, checkpoint)
    ema.average["weight"].zero_()
    assert checkpoint["ema"]["weight"].item() == pytest.approx(SECOND, rel=1e-6)


def test_a_checkpoint_without_an_average_starts_from_its_weights(make_trainer, tmp_path):
    path, ema = tmp_path / "last.ckpt", EMA()
    before = make_trainer(max_steps=2, plugins=[AtomicCheckpointIO()])
    before.fit(Falling(), BATCHES)
    before.save_checkpoint(path)
    make_trainer(max_steps=3, callbacks=[ema], plugins=[AtomicCheckpointIO()]).fit(
        Falling(), BATCHES[2:], ckpt_path=path
    )
    assert ema.average["weight"].item() == pytest.approx(4 / 13 * 8 + 9 / 13 * 7, rel=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range(decay):
    with pytest.raises(UserError, match=rf"callbacks.ema.decay={decay}"):
        EMA(decay)
