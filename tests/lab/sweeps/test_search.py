import json

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from vidlab.errors import UserError
from vidlab.lab.sweeps.record import JobRecord, SweepRecord, read_sweep, write_sweep
from vidlab.lab.sweeps.running import Sweep
from vidlab.lab.sweeps.search import SearchSettings, ask, best, distribution

optuna = pytest.importorskip("optuna")
SETTINGS = SearchSettings(trials=9, at_once=1, metric="val/loss", maximize=False, seed=3)
SPACE = {
    "lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
    "depth": optuna.distributions.IntDistribution(1, 8),
    "model": optuna.distributions.CategoricalDistribution(["2p1d", "full3d"]),
}


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("lr=tag(log,interval(1e-4,1e-2))", SPACE["lr"]),
        ("lr=interval(0,1)", optuna.distributions.FloatDistribution(0, 1)),
        ("depth=int(interval(1,8))", SPACE["depth"]),
        ("depth=range(2,9,2)", optuna.distributions.IntDistribution(2, 8, step=2)),
        ("depth=range(0.5,2,0.5)", optuna.distributions.FloatDistribution(0.5, 1.5, step=0.5)),
        ("model=2p1d,full3d", SPACE["model"]),
        ("seed=choice(0,2)", optuna.distributions.CategoricalDistribution(["0", "2"])),
    ],
)
def test_what_may_vary(typed, expected):
    (override,) = OverridesParser.create().parse_overrides([typed])
    assert distribution(override) == expected


def searched(folder, count: int, loss) -> Sweep:
    """A search of so many jobs, whose losses are those of their numbers."""
    folder.mkdir(exist_ok=True)
    write_sweep(folder, SweepRecord("one", "vidlab", None, "train", (), 1))
    sweep = Sweep(folder, resumed=False)
    for number in range(count):
        (words,) = ask(sweep, SPACE, SETTINGS, 1)
        (folder / str(number)).mkdir(exist_ok=True)
        (folder / str(number) / "summary.json").write_text(json.dumps({"last": {"val/loss": loss(words)}}))
        job = JobRecord(number, ("seed=0", *words), "failed" if number == 2 else "finished", str(number))
        write_sweep(folder, read_sweep(folder).having(job))
    return sweep


def rate(words: list[str]) -> float:
    return float(words[0].removeprefix("lr="))


def test_a_search_that_goes_on_comes_to_the_jobs_of_an_undisturbed_one(tmp_path):
    whole = searched(tmp_path / "whole", 14, rate)
    again = searched(tmp_path / "again", 14, rate)
    jobs = read_sweep(whole.folder).jobs
    assert jobs == read_sweep(again.folder).jobs
    assert len({job.overrides for job in jobs}) == 14, "seeded anew, and not the same again"
    rates = [rate(list(job.overrides[1:])) for job in jobs]
    assert all(1e-4 <= one <= 1e-2 for one in rates)
    told = [value for number, value in enumerate(rates) if number != 2]
    expected = f"The best of 13: job {rates.index(min(told))}, val/loss {min(told):.4g}: seed=0"
    assert best(whole, SETTINGS).startswith(expected)


def test_a_job_that_diverged_stops_no_search_and_is_not_the_best(tmp_path):
    sweep = searched(tmp_path / "one", 5, lambda words: float("nan") if rate(words) > 1e-3 else rate(words))
    rates = [rate(list(job.overrides[1:])) for job in read_sweep(sweep.folder).jobs]
    told = [value for number, value in enumerate(rates) if number != 2 and value <= 1e-3]
    assert 0 < len(told) < 4, "the losses of some are no number"
    assert best(sweep, SETTINGS).startswith(f"The best of {len(told)}: job {rates.index(min(told))}, ")


def test_a_search_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"hydra\.sweeper\.trials=0: it must be at least 1"):
        SearchSettings(0, 1, "val/loss", False, 0).check()
