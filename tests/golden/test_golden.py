"""The losses on record hold: see golden_runs.py, and CONTRIBUTING.md for how to renew them."""

import itertools
import json
import warnings

import pytest
from golden_runs import (
    CROSSED_CONDITIONINGS,
    CROSSED_OBJECTIVES,
    HERE,
    MODELS,
    OPTIMIZERS,
    STEPS,
    TRAINER_RUNS,
    combinations,
    run_named,
    train_combination,
)  # fmt: skip

RECORD = json.loads((HERE / "losses.json").read_text())
COMBINATIONS = [(*combination, optimizer) for combination in combinations() for optimizer in OPTIMIZERS]
CROSSED = (MODELS, CROSSED_OBJECTIVES, CROSSED_CONDITIONINGS, OPTIMIZERS)
PLACES = {name: place for names in CROSSED for place, name in enumerate(names)}


# Relative, of 20 steps in float32 on another processor than that of the record, whose last bits differ. On one machine
# a change that only sums in another order stays within 1e-6, which compare_records.py shows.
TOLERANCE = 1e-4
FIRST = 6  # steps of a combination in every run of the tests: the optimizer's state counts from the second on


def close(losses: list[float], name: str) -> bool:
    return losses == pytest.approx(RECORD["losses"][name][: len(losses)], rel=TOLERANCE)


def in_every_run(names: tuple[str, ...]) -> bool:
    """A tenth: each model with each objective meets one optimizer and one conditioning."""
    model, objective, conditioning, optimizer = names
    if objective not in CROSSED_OBJECTIVES or conditioning not in CROSSED_CONDITIONINGS:
        return optimizer == OPTIMIZERS[0]
    place = PLACES[model] + PLACES[objective]
    meets = (place + PLACES[conditioning]) % len(CROSSED_CONDITIONINGS) == 0
    return meets and place % len(OPTIMIZERS) == PLACES[optimizer]


@pytest.mark.parametrize("names", filter(in_every_run, COMBINATIONS), ids=" ".join)
def test_first_losses_of_a_combination(names):
    losses = train_combination(*names, steps=FIRST)
    assert len(losses) == FIRST and close(losses, " ".join(names))


@pytest.mark.slow
@pytest.mark.parametrize("names", COMBINATIONS, ids=" ".join)
def test_losses_of_a_combination(names):
    losses = train_combination(*names)
    assert len(losses) == STEPS and close(losses, " ".join(names))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("golden")


def trainer_case(name: str, optimizer: str) -> object:
    """Every run with one optimizer in every run of the tests, in turn; with the others by ``pytest -m slow``."""
    every = [*TRAINER_RUNS, "cached"].index(name) % len(OPTIMIZERS) == OPTIMIZERS.index(optimizer)
    return pytest.param(name, optimizer, marks=() if every else pytest.mark.slow)


RUNS = itertools.product((*TRAINER_RUNS, "cached"), OPTIMIZERS)


@pytest.mark.parametrize(("name", "optimizer"), itertools.starmap(trainer_case, RUNS))
def test_losses_and_order_of_a_run(name, optimizer, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = run_named(name, optimizer, folder)
    assert found.order.hexdigest() == RECORD["orders"][name]
    assert len(found.losses) == len(RECORD["losses"][f"{name} {optimizer}"])
    assert close(found.losses, f"{name} {optimizer}")


def test_the_record_is_of_what_there_is():
    names = {" ".join(combination) for combination in COMBINATIONS}
    names |= {f"{name} {optimizer}" for name in (*TRAINER_RUNS, "cached") for optimizer in OPTIMIZERS}
    assert names == set(RECORD["losses"])
    assert len({tuple(losses) for losses in RECORD["losses"].values()}) == len(names)
