"""Batches of equal tokens beside batches of equal measured time: how much steps differ, and how many clips they take.

The table is measured as ``python -m vidlab step_times`` does; then steps of both kinds are timed anew, by bucket.

    python benchmarks/step_times.py [--model full3d] [--clips 4] [--steps 5]
"""

import argparse
import statistics

from omegaconf import open_dict

from record import record
from vidlab.data.samplers.assignment import Bucket
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.samplers.step_times import StepTime, StepTimes
from vidlab.lab.cli.composed import compose
from vidlab.lab.cli.process_env import prepare_host
from vidlab.lab.compose import build_module, build_trainer
from vidlab.lab.reports.step_times import StepTimer

BUCKETS = (
    Bucket(1, 32, 32), Bucket(1, 64, 64), Bucket(4, 32, 32), Bucket(8, 32, 32), Bucket(8, 32, 64), Bucket(8, 64, 64)
)  # fmt: skip


def main() -> None:
    prepare_host()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="full3d")
    parser.add_argument("--clips", type=int, default=4, help="of a batch of the largest bucket")
    parser.add_argument("--steps", type=int, default=5)
    asked = parser.parse_args()
    words = (f"model={asked.model}", "autoencoder=haar_frames", "model.token=[1,4,4]", "logger=none")
    cfg = compose(*words, "data.height=64", "data.width=64")
    with open_dict(cfg):
        cfg.callbacks = {}
    timer = StepTimer(build_module(cfg), build_trainer(cfg, False))
    rule = Bucketing(64 * 64, stride=4, temporal_stride=1)
    by_tokens = rule.batch_sizes(BUCKETS, asked.clips)
    found = {}
    for bucket, clips in zip(BUCKETS, by_tokens, strict=True):
        pair = ((one, timer.seconds(bucket, one, asked.steps)) for one in (max(1, clips // 2), clips))
        found[str(bucket)] = StepTime.through(*pair)
    by_time = StepTimes(found).batch_sizes(BUCKETS, BUCKETS[-1], asked.clips)
    rows = []
    for kind, sizes in (("equal tokens", by_tokens), ("equal time", by_time)):
        seconds = [timer.seconds(bucket, clips, asked.steps) for bucket, clips in zip(BUCKETS, sizes, strict=True)]
        rows += [
            {"model": asked.model, "balance": kind, "bucket": str(bucket), "clips": clips,
             "tokens": rule.tokens(bucket) // 16 * clips, "seconds": round(took, 4)}
            for bucket, clips, took in zip(BUCKETS, sizes, seconds, strict=True)
        ]  # fmt: skip
        tokens = sum(row["tokens"] for row in rows if row["balance"] == kind)
        print(
            f"{kind}: steps of {min(seconds):.3f} to {max(seconds):.3f} s, standard deviation "
            f"{100 * statistics.pstdev(seconds) / statistics.mean(seconds):.0f} % of the mean; "
            f"{sum(sizes) / sum(seconds):.1f} clips/s and {tokens / sum(seconds):,.0f} tokens/s with a step of each"
        )
    for row in rows:
        print(row)
    print(record("step_times", rows))


if __name__ == "__main__":
    main()
