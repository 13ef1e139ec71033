"""Speed and memory of video autoencoders side by side on one machine, encoding and decoding.

WF-VAE S and L, direct and in chunks of two latent frames, against an image autoencoder per frame of the same latent
compression as S (the size of Stable Diffusion's, with 2 channels: 3 x 8 x 8 / 2 = 3 x 4 x 8 x 8 / 8 = 96) and against
causal autoencoders of full 3D convolutions (Allegro's is not among them: diffusers runs it in tiles of 24 x 320 x 320
only), all with random weights of the published sizes. Each contestant lives in a process of its own, which sleeps while
another works; rounds take turns, so that a change in the machine's load meets all. Memory is the most that a process
holds above itself with its weights and the clip, in its first round, which is not timed. The others are built by
diffusers, which vidlab needs for nothing else here: pip install diffusers==0.42.1. Without it they are left out.

    python benchmarks/autoencoders.py [--frames 17] [--side 64] [--rounds 3] [--dtype float32] [--only wfvae_s ...]
"""

import argparse
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from vidlab.lab.cli.process_env import SPINS

os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is imported

import torch
from torch import Tensor, nn

from record import record
from vidlab.autoencoders.wfvae import WFVAE
from vidlab.lab.evaluation.resource_usage import profile

SIZES_L = {"latent_channels": 16, "width": 192, "encoder_energy": 128}
IMAGE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 2,
}  # fmt: skip
# Table 6 of arXiv 2412.00131, 33 x 512 x 512 on one GPU: encoded videos per second and gigabytes.
PUBLISHED = {"wfvae_s": (11.11, 4.70), "wfvae_l": (5.55, 7.00), "cogvideox": (1.02, 35.01)}


@dataclass(frozen=True)
class Coder:
    """A network and its two ways."""

    network: nn.Module
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def wfvae(**settings: Any) -> Coder:
    """Ours."""
    model = WFVAE(**settings)
    return Coder(model, model.encode, model.decode)


def of_diffusers(kind: str, **settings: Any) -> Coder:
    """A class of diffusers at its published size, which is what it takes by default."""
    import diffusers

    model = getattr(diffusers, kind)(**settings)
    return Coder(model, lambda x: model.encode(x).latent_dist.mode(), lambda z: model.decode(z).sample)


def image_vae() -> Coder:
    """Frame by frame, all frames at once."""
    inner = of_diffusers("AutoencoderKL", **IMAGE)

    def each(way: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: way(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)

    return Coder(inner.network, each(inner.encode), each(inner.decode))


CONTESTANTS: Mapping[str, Callable[[], Coder]] = {
    "wfvae_s": wfvae,
    "wfvae_s_chunk2": partial(wfvae, chunk=2),
    "wfvae_l": partial(wfvae, **SIZES_L),
    "wfvae_l_chunk2": partial(wfvae, chunk=2, **SIZES_L),
    "image_vae": image_vae,
    "cogvideox": partial(of_diffusers, "AutoencoderKLCogVideoX"),
    "hunyuan": partial(of_diffusers, "AutoencoderKLHunyuanVideo"),
}
OURS = tuple(name for name in CONTESTANTS if name.startswith("wfvae"))
OTHERS = tuple(name for name in CONTESTANTS if name not in OURS)


@dataclass(frozen=True)
class Case:
    """What is encoded, and how."""

    frames: int
    side: int
    dtype: str
    device: str


def work(connection: Connection, name: str, case: Case, threads: int) -> None:
    """A contestant's process: says what it is, then answers each message with a round's seconds and memory."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    coder = CONTESTANTS[name]()
    coder.network.eval().to(case.device, getattr(torch, case.dtype))
    clip = torch.rand(1, 3, case.frames, case.side, case.side) * 2 - 1
    clip = clip.to(case.device, getattr(torch, case.dtype))
    connection.send(sum(parameter.numel() for parameter in coder.network.parameters()))
    while connection.recv():
        latents, down = profile(lambda: coder.encode(clip), case.device)
        latents = latents.to(clip.dtype)
        pixels, up = profile(lambda z=latents: coder.decode(z), case.device)  # type: ignore[misc]
        connection.send({
            "encode_s": down.seconds, "decode_s": up.seconds, "encode_mib": down.peak_mib, "decode_mib": up.peak_mib,
            "latent": tuple(latents.shape[1:]), "frames_out": pixels.shape[2],
        })  # fmt: skip
        del latents, pixels


def measure(names: Sequence[str], case: Case, rounds: int) -> list[dict[str, str]]:
    """One row for each contestant that could take the clip."""
    context = get_context("spawn")
    lines: dict[str, Connection] = {}
    sizes: dict[str, int] = {}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    processes = []
    for name in names:
        here, there = context.Pipe()
        process = context.Process(target=work, args=(there, name, case, torch.get_num_threads()), daemon=True)
        process.start()
        there.close()
        processes.append(process)
        lines[name], sizes[name] = here, here.recv()
        print(f"{name}: {sizes[name] / 1e6:.1f} million parameters", flush=True)
    for number in range(rounds + 1):
        for name in names:
            lines[name].send(True)
            found[name].append(lines[name].recv())
            told = found[name][-1]
            print(
                f"round {number}  {name}  encode {told['encode_s']:.2f} s  decode {told['decode_s']:.2f} s", flush=True
            )
    for name, process in zip(names, processes, strict=True):
        lines[name].send(False)
        process.join()
    return [row(name, sizes[name], found[name], case) for name in names]


def row(name: str, parameters: int, rounds: Sequence[Mapping[str, Any]], case: Case) -> dict[str, str]:
    """Medians of the timed rounds; memory of the first."""
    first, timed = rounds[0], rounds[1:]
    memory = {key: "" if first[key] is None else f"{first[key]:.0f}" for key in ("encode_mib", "decode_mib")}
    medians = {key: f"{statistics.median(one[key] for one in timed):.3f}" for key in ("encode_s", "decode_s")}
    return {
        "autoencoder": name, "parameters": str(parameters), "size": f"{case.frames}x{case.side}x{case.side}",
        "latent": "x".join(str(side) for side in first["latent"]), "dtype": case.dtype, "device": case.device,
        "threads": str(torch.get_num_threads()), "rounds": str(len(timed)), **medians, **memory,
    }  # fmt: skip


def ratios(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """WF-VAE's encoding throughput and memory over every other's, beside the published ones."""
    by_name = {one["autoencoder"]: one for one in rows}
    lines = []
    for ours in (name for name in by_name if name in OURS):
        for other in (name for name in by_name if name in OTHERS):
            a, b = by_name[ours], by_name[other]
            faster, up = (float(b[key]) / float(a[key]) for key in ("encode_s", "decode_s"))
            known = a["encode_mib"] and b["encode_mib"]
            share = f"{float(a['encode_mib']) / float(b['encode_mib']):.2f}" if known else "?"
            lines.append(
                f"{ours} over {other}: encoding throughput {faster:.2f}, memory {share}; decoding {up:.2f}"
                + claim(ours, other)
            )
    return lines


def claim(ours: str, other: str) -> str:
    """The published ratio, where both are in the table."""
    published = ours.removesuffix("_chunk2")
    if published not in PUBLISHED or other not in PUBLISHED:
        return ""
    (speed, memory), (slower, more) = PUBLISHED[published], PUBLISHED[other]
    return f"  (published, 33x512x512 on a GPU: {speed / slower:.1f} and {memory / more:.2f})"


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=17, help="1 plus a multiple of 4")
    parser.add_argument("--side", type=int, default=64, help="a multiple of 8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", nargs="+", choices=tuple(CONTESTANTS))
    arguments = parser.parse_args()
    if arguments.frames % 4 != 1 or arguments.side % 8:
        parser.error("--frames is 1 plus a multiple of 4, --side a multiple of 8")
    names = arguments.only or list(CONTESTANTS)
    if not find_spec("diffusers"):
        if arguments.only and set(names) & set(OTHERS):
            parser.error(f"--only {' '.join(names)}: {', '.join(OTHERS)} need pip install diffusers==0.42.1")
        if not arguments.only:
            print(f"{', '.join(OTHERS)} are left out: to compare with them, pip install diffusers==0.42.1", flush=True)
            names = list(OURS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = measure(names, Case(arguments.frames, arguments.side, arguments.dtype, device), arguments.rounds)
    for one in rows:
        print(*(f"{key} {value}" for key, value in one.items()), sep="  ")
    print(*ratios(rows), sep="\n")
    print(record("autoencoders", rows))


if __name__ == "__main__":
    main()
