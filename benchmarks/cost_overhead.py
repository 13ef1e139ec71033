"""What counting FLOPs and logging the cost of a run take of its steps.

The default training runs with its default callbacks and the MLflow logger. The time of the meter and of the throughput
callback's counting is measured where it is spent: shapes and lengths of captions that are counted for the first time,
the counts of every step, the rows handed to the logger, and its background thread's CPU time for them.

    python benchmarks/cost_overhead.py [--steps 400] [overrides ...]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidlab.lab.cli.process_env import SPINS, prepare_host

os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is imported; the rest is in prepare_host()

import torch

from loop_overhead import Clock, configuration, step_seconds
from record import record
from vidlab.callbacks.cost.meter import UNITS, CostMeter
from vidlab.callbacks.throughput import Throughput
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.compose import build_data, build_module, build_trainer
from vidlab.lab.tracking import metric_queue, mlflow_logger


class Stopwatch:
    """Seconds spent in functions that it wraps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, name: str, function: Callable[..., Any], clock: Callable[[], float] = time.perf_counter) -> Any:
        """The same function, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            start = clock()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + clock() - start

        return timed


def measure(steps: int, overrides: list[str]) -> dict[str, float]:
    """Seconds of all measured steps, and of counting and logging in them."""
    watch, sent = Stopwatch(), {"all": 0, "cost": 0}
    send = metric_queue.send_batch

    def counted(client: Any, run_id: str, points: Any) -> None:
        sent["all"] += len(points)
        sent["cost"] += sum(point.key.startswith("cost/") for point in points)
        watch.watch("thread", send, time.thread_time)(client, run_id, points)

    mlflow_logger.send_batch = counted  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        cfg = configuration(Path(folder), steps, overrides)
        torch.manual_seed(cfg.seed)
        logger = instantiate(cfg.logger, "logger")
        trainer, clock, meter = build_trainer(cfg, logger), Clock(), CostMeter()
        meter.on_train_batch_end = watch.watch("meter", meter.on_train_batch_end)  # type: ignore[method-assign]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback._cost_of = watch.watch("throughput", callback._cost_of)  # type: ignore[method-assign]
        trainer.callbacks[:] = [meter, *trainer.callbacks, clock]  # type: ignore[attr-defined]
        module = build_module(cfg)
        plan_cost = module.plan.cost
        first: dict[Any, float] = {}

        def cost(read: Any) -> Any:
            start = time.perf_counter()
            found = plan_cost(read)
            first.setdefault(read, time.perf_counter() - start)
            return found

        module.plan.cost = cost
        trainer.fit(module, datamodule=build_data(cfg))
        logger.close("success")
    durations = step_seconds(clock.stamps)
    share = sent["cost"] / max(sent["all"], 1)
    own = watch.seconds["meter"] + watch.seconds.get("throughput", 0.0)
    return {
        "steps": len(durations),
        "step_ms": 1e3 * sum(durations) / len(durations),
        "inputs": len(first),
        "first_counts_s": sum(first.values()),
        "each_step_ms": 1e3 * (own - sum(list(first.values())[1:])) / len(clock.stamps),
        "thread_ms": 1e3 * watch.seconds.get("thread", 0.0) * share / len(clock.stamps),
    }


def main() -> None:
    """Measure, print and record the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--run", type=int, default=680, help="steps of a run, over which first counts are spread")
    arguments, overrides = parser.parse_known_args()
    prepare_host()
    found = measure(arguments.steps, overrides)
    each = found["each_step_ms"] + found["thread_ms"]
    whole = each + 1e3 * found["first_counts_s"] / arguments.run
    shares = {"share_each_step": each / found["step_ms"], "share_of_run": whole / found["step_ms"]}
    row = {"overrides": " ".join(overrides) or "defaults", "logged": len(UNITS)}
    row |= {name: f"{value:.4g}" for name, value in (found | shares).items()}
    print("\n".join(f"{name:<16} {value}" for name, value in row.items()))
    print(record("cost_overhead", [row]))


if __name__ == "__main__":
    main()
