"""The callback that stores averages, through short trainings: what is stored, resuming, and what is made of it."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from vidlab.callbacks.ema import averaged_parameters
from vidlab.callbacks.post_hoc_ema.profiles import Snapshot, decay_at, exponent_of
from vidlab.callbacks.post_hoc_ema.snapshots import PostHocEMA, combined, file_name, stored_in
from vidlab.errors import UserError
from vidlab.lab.ema.__main__ import main
from vidlab.lab.ema.reconstruction import average_of, with_average
from vidlab.tensors import read_tensors


class Weights(LightningModule):
    """Two parameters in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))


class Fake(Trainer):
    """As much of a trainer as the callback asks for; its weights are noise around 5, a function of the step."""

    is_global_zero, global_step = True, 0

    def __init__(self, folder, **settings) -> None:
        self.module = Weights()
        self.callback = PostHocEMA(str(folder), **settings)
        self.seen: list[torch.Tensor] = []

    def train(self, until: int) -> None:
        self.callback.on_fit_start(self, self.module)
        self.callback.on_train_start(self, self.module)
        while self.global_step < until:
            self.global_step += 1
            draw = torch.Generator().manual_seed(self.global_step)
            with torch.no_grad():
                for parameter in self.module.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) + 5)
            self.seen.append(self.module.weight.detach().clone())
            for _ in range(2):  # the second of two batches that make one step takes no further one
                self.callback.on_train_batch_end(self, self.module)
        self.callback.on_train_end(self, self.module)


@pytest.fixture(autouse=True)
def _plain_steps(monkeypatch):
    monkeypatch.setattr("vidlab.callbacks.ema.steps_taken", lambda trainer: trainer.global_step)


def by_hand(seen, length: float) -> torch.Tensor:
    average, gamma = torch.zeros_like(seen[0]), exponent_of(length)
    for step, weight in enumerate(seen, start=1):
        beta = decay_at(step, gamma)
        average = beta * average + (1 - beta) * weight
    return average


def test_snapshots_are_the_averages_of_their_steps(tmp_path):
    run = Fake(tmp_path / "ema", lengths=(0.05, 0.1), every_n_steps=4)
    run.train(10)
    found = stored_in(tmp_path / "ema")
    assert list(found) == [Snapshot(s, t) for t in (4, 8, 10) for s in (0.05, 0.1)]
    for one, path in found.items():
        stored = read_tensors(path, "")
        assert stored.keys() == averaged_parameters(run.module).keys()
        torch.testing.assert_close(stored["weight"], by_hand(run.seen[: one.step], one.sigma_rel), rtol=1e-12, atol=0)


def test_a_resumed_run_stores_the_same(tmp_path):
    whole, first, second = (Fake(tmp_path / name, every_n_steps=5) for name in ("whole", "parts", "parts"))
    whole.train(10)
    first.train(7)
    second.callback.load_state_dict(first.callback.state_dict())
    second.global_step = 7
    second.train(10)
    for s in (0.05, 0.1):
        name = file_name(Snapshot(s, 10))
        one, other = (read_tensors(tmp_path / folder / name, "") for folder in ("whole", "parts"))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_cannot_be_kept_is_refused(tmp_path):
    with pytest.raises(UserError, match="two or more"):
        PostHocEMA(str(tmp_path), lengths=[0.1])
    with pytest.raises(UserError, match="at least 1"):
        PostHocEMA(str(tmp_path), every_n_steps=0)
    late = Fake(tmp_path)
    late.global_step = 3
    with pytest.raises(UserError, match="3 steps without it"):
        late.train(5)
    with pytest.raises(UserError, match=r"lengths=\[0.2,0.3\]"):
        PostHocEMA(str(tmp_path)).load_state_dict({"0.2": {}, "0.3": {}})


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A run folder with snapshots up to step 60 and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "vidlab" / "one"
    run = Fake(folder / "ema", every_n_steps=3)
    run.train(60)
    (folder / "checkpoints").mkdir()
    state = {"state_dict": run.module.state_dict(), "ema": {}, "global_step": 60}
    torch.save(state, folder / "checkpoints" / "last.ckpt")
    return run, folder


def test_another_length_is_made_after_training(trained, capsys):
    run, folder = trained
    assert main([str(folder), "0.08"]) == 0
    assert "generate.py" in capsys.readouterr().out
    made = torch.load(folder / "checkpoints" / "ema-0.08.ckpt")["ema"]
    wanted = by_hand(run.seen, 0.08)
    assert float((made["weight"] - wanted).norm() / wanted.norm()) < 5e-3  # 60 steps of nothing but noise
    earlier = average_of(folder, 0.08, 30)["weight"]
    assert float((earlier - by_hand(run.seen[:30], 0.08)).norm() / wanted.norm()) < 1e-2


def test_what_cannot_be_made_is_refused(trained, tmp_path, capsys):
    _, folder = trained
    state = torch.load(folder / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="no snapshot up to step 2; it has them of steps"):
        average_of(folder, 0.08, 2)
    with pytest.raises(UserError, match="an average is asked for"):
        with_average(state, folder, 0.08, "raw", folder)
    with pytest.raises(UserError, match="of another model"):
        with_average({**state, "state_dict": {}}, folder, 0.08, "ema", folder)
    assert main([str(folder), "0.5"]) == 2
    assert "0.2887" in capsys.readouterr().err
    assert main([str(tmp_path), "0.1"]) == 2


def test_files_of_different_weights_are_not_added(tmp_path):
    from vidlab.tensors import save_tensors

    save_tensors({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    save_tensors({"b": torch.ones(2)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="other weights"):
        combined({tmp_path / "a.safetensors": 1.0, tmp_path / "b.safetensors": 1.0})
