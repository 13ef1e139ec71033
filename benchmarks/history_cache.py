"""What keeping the history saves: one frame of a video, made with and without ``sampler.cache``.

``model=mmdim`` at laptop size with ``history_timestep=clean text_ends=left`` and random weights makes the frame that
follows the given number of earlier ones. Both ways run in turn from the same noise; figures are medians, of processor
time on a CPU. Beside them stands by how much the frames differ at most.

    python benchmarks/history_cache.py [--history 7 15 31] [--size 8] [--steps 10] [--batch 2] [--rounds 3]
"""

import argparse
import statistics
import time
from functools import partial

import torch
from torch import nn

from record import record
from vidlab.backbones.mmdim import MMDiM
from vidlab.clip import Conditions, KnownLatents, LatentShape, TextEmbedding
from vidlab.diffusion.pyramid_flow import PyramidFlow
from vidlab.lab.cli.process_env import prepare_host
from vidlab.layers.mixers.ssd_mixer import SSDMixer
from vidlab.randomness import KeyedRNG
from vidlab.sampling.guidance import NoGuidance
from vidlab.sampling.pyramid import PyramidSampler

CHANNELS, TEXT, SLOTS = 48, 128, 16


def model(size: int, device: str) -> MMDiM:
    """Laptop size, with gates that are open."""
    torch.manual_seed(0)
    made = MMDiM(
        LatentShape(CHANNELS, 1, size, size), TEXT, partial(SSDMixer), width=192, depth=2, heads=3, patch=(1, 2, 2),
        dual_depth=1, text_ends="left", history_timestep="clean", absolute_positions=True, rope_base=100.0,
    )  # fmt: skip
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return made.to(device).eval()


def conditions(batch: int, history: int, size: int, device: str) -> dict[str, Conditions]:
    """A caption, and all frames but the last."""
    generator = torch.Generator().manual_seed(0)
    text = TextEmbedding(
        torch.randn(batch, SLOTS, TEXT, generator=generator),
        torch.ones(batch, SLOTS, dtype=torch.bool),
        torch.randn(batch, TEXT, generator=generator),
    )
    latents = torch.randn(batch, CHANNELS, history + 1, size, size, generator=generator)
    mask = torch.ones(batch, 1, history + 1, 1, 1)
    mask[:, :, -1] = 0
    known = KnownLatents(latents.to(device), mask.to(device))
    return {"full": Conditions(text=text.to(device), known=known)}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=int, nargs="+", default=[7, 15, 31])
    for name, default in (("size", 8), ("steps", 10), ("batch", 2), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    prepare_host()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    network, size, batch = model(arguments.size, device), arguments.size, arguments.batch
    draw = KeyedRNG(0, tuple(map(str, range(batch))), (0,) * batch)
    rows = []
    for history in arguments.history:
        told = conditions(batch, history, size, device)
        noise = draw.normal("noise", (CHANNELS, history + 1, size, size)).to(device)
        times: dict[bool, list[float]] = {True: [], False: []}
        frames = {}
        for number in range(arguments.rounds + 1):
            for cache in (False, True):
                sampler = PyramidSampler(steps=arguments.steps, cache=cache)
                clock = time.perf_counter if device == "cuda" else time.process_time
                start = clock()
                frames[cache] = sampler.sample(network, PyramidFlow(2), NoGuidance(), noise, told, draw=draw)[:, :, -1]
                frames[cache].sum().item()
                if number:  # the first round builds tables
                    times[cache].append(clock() - start)
        kept, anew = (statistics.median(times[cache]) for cache in (True, False))
        rows.append(
            {
                "history": history, "size": size, "steps": arguments.steps, "batch": batch, "device": device,
                "threads": torch.get_num_threads(), "seconds_anew": f"{anew:.3f}", "seconds_kept": f"{kept:.3f}",
                "faster": f"{anew / kept:.2f}",
                "largest_difference": f"{(frames[True] - frames[False]).abs().max().item():.1e}",
            }
        )  # fmt: skip
        print(*(f"{key} {value}" for key, value in rows[-1].items()), sep="  ")
    print(f"appended to {record('history_cache', rows)}")


if __name__ == "__main__":
    main()
