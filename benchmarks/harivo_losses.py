"""What the losses of HARIVO add to a training step: forward and backward with none, with each alone, and with all.

The model has random weights and the batch random latents and text, which take the same time as any. At ``sd15`` it is
Stable Diffusion 1.5's UNet with 16 frames of 32 x 32 latents, one clip and recomputed activations; at ``laptop`` the
sizes of ``model=harivo data=moving_shapes``. Combinations take turns, one round after another; figures are medians of
the processor's time, all threads together, or on a GPU of elapsed time.

    python benchmarks/harivo_losses.py [--sizes laptop,sd15] [--rounds 3] [--losses none,trs,contrastive,t2i,all]
"""

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from record import record
from vidlab.backbones.harivo import HARIVO
from vidlab.clip import ClipBatch, DenoiserInput, LatentShape, LossContext, TextEmbedding
from vidlab.features import H_SPACE
from vidlab.lab.cli.process_env import prepare_host
from vidlab.losses.base import Regularizers
from vidlab.losses.contrastive import DecoupledContrastive
from vidlab.losses.t2i import T2IRegularization
from vidlab.losses.trs import TRS

ALL = ("trs", "contrastive", "t2i")


@dataclass(frozen=True)
class Size:
    """A model, a batch of clips and whether activations are recomputed."""

    latent: LatentShape
    text_tokens: int
    text_width: int
    width: int
    depth: int
    heads: int
    clips: int
    recomputed: bool

    def model(self, device: str) -> HARIVO:
        """With random weights, every temporal module answering."""
        with torch.device(device):
            model = HARIVO(
                self.latent, self.text_width, width=self.width, depth=self.depth, heads=self.heads,
                activation_checkpointing=self.recomputed,
            )  # fmt: skip
        return model.train()


SIZES = {
    "laptop": Size(LatentShape(48, 8, 8, 8), 24, 128, 32, 1, 4, clips=16, recomputed=False),
    "sd15": Size(LatentShape(4, 16, 32, 32), 77, 768, 320, 2, 8, clips=1, recomputed=True),
}


class Bench:
    """A model, a batch, and the losses."""

    def __init__(self, size: Size, device: str) -> None:
        torch.manual_seed(0)
        self.size, self.device, self.model = size, device, size.model(device)
        latent, count = size.latent, size.clips
        self.latents = torch.randn(count, latent.channels, latent.frames, latent.height, latent.width, device=device)
        tokens = torch.randn(count, size.text_tokens, size.text_width, device=device)
        mask = torch.ones(count, size.text_tokens, dtype=torch.bool, device=device)
        self.text = TextEmbedding(tokens, mask, tokens[:, 0])
        self.t = torch.linspace(0.1, 0.9, count + 2, device=device)[1:-1]
        self.terms = {"trs": TRS(), "contrastive": DecoupledContrastive(), "t2i": T2IRegularization()}
        smallest = (latent.height // 8, latent.width // 8)
        channels = size.width * 4
        self.terms["contrastive"].fit_features({H_SPACE: (channels, latent.frames, *smallest)})
        self.terms["contrastive"].to(device)

    def step(self, names: tuple[str, ...]) -> float:
        """Seconds of one forward and backward pass with these losses."""
        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        clock = time.perf_counter if self.device == "cuda" else time.process_time
        terms = Regularizers({name: self.terms[name] for name in names})
        input = DenoiserInput(self.latents, self.t, 1000 * self.t, self.text, requested=terms.requested)
        wait()
        start = clock()
        output = self.model(input)
        loss = (output.prediction - self.latents).square().mean()
        if names:
            loss = terms.added_to(loss, terms.values(self._context(input, output)))
        loss.backward()
        wait()
        seconds = clock() - start
        self.model.zero_grad()
        return seconds

    def _context(self, input, output) -> LossContext:
        keys = tuple(str(number) for number in range(self.size.clips))
        pixels = torch.zeros(self.size.clips, 3, self.size.latent.frames, 1, 1, device=self.device)
        batch = ClipBatch(pixels, ("",) * len(keys), keys, (0,) * len(keys), 0, (8.0,) * len(keys))
        return LossContext(
            batch, input, output, self.latents, 0, batch.draw(0), self.size.latent,
            x0_of=lambda output, input: output.prediction, decode=lambda latents: latents,
        )  # fmt: skip


def measured(name: str, device: str, rounds: int, chosen: list[str]) -> list[Mapping[str, object]]:
    """A row for each combination of losses."""
    bench = Bench(SIZES[name], device)
    sets = {"none": (), **{term: (term,) for term in ALL}, "all": ALL}
    seconds: dict[str, list[float]] = {one: [] for one in chosen}
    for number in range(rounds + (SIZES[name].width < 100)):  # the first of a small model warms up
        for one in chosen:
            taken = bench.step(sets[one])
            if number >= (SIZES[name].width < 100):
                seconds[one].append(taken)
    middle = {one: statistics.median(values) for one, values in seconds.items()}
    plain = middle[chosen[0]]
    return [
        {"size": name, "device": device, "losses": one, "rounds": len(seconds[one]), "seconds": round(value, 3),
         "times_plain": round(value / plain, 3), "added_share": round((value - plain) / plain, 3)}
        for one, value in middle.items()
    ]  # fmt: skip


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="laptop,sd15")
    parser.add_argument("--losses", default="none,trs,contrastive,t2i,all", help="the first is what others compare to")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-record", action="store_true")
    found = parser.parse_args()
    prepare_host()
    for name in found.sizes.split(","):
        rows = measured(name, found.device, found.rounds, found.losses.split(","))
        for row in rows:
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if not found.no_record:
            print(record("harivo_losses", rows))


if __name__ == "__main__":
    main()
