"""Forward and backward passes of every backbone on a GPU, at laptop size and at published block sizes, under bf16.

Of each: milliseconds, TFLOP/s, the share of the vendor's rate (MFU), the time that its products and its attention would
take at the rates measured in the same run (the bound), the share of it that is reached, and peak memory; as it is
written and with compiled blocks. Beside them a DiT in stock PyTorch (``reference_dit.py``).

FLOPs are those of products, forward once and backward twice. For the bound attention counts 3.5 times its forward
pass, since a fused kernel computes its scores again.

    python benchmarks/gpu_step.py [--cases full3d "full3d 1152"] [--modes eager compiled] [--profile traces]
    python benchmarks/gpu_step.py --device cpu --tiny     # the same path in seconds; its numbers say nothing
"""

import argparse
import gc
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ceilings import Ceilings, seconds_of
from model_cases import CASES, LARGE, WIDE, Case, described
from record import RESULTS, record
from reference_dit import ReferenceDiT
from vidlab.clip import DenoiserInput, TextEmbedding
from vidlab.cost.counting import ProductCounter
from vidlab.cost.flops import DenoiserCounter, ModelCost, StepInput
from vidlab.cost.rates import vendor_rate
from vidlab.diffusion.objective import InputShape

PLAIN = "model.backbone.activation_checkpointing=false"
STIV = ("model=paper/stiv_xl", PLAIN, "model.backbone.depth=4", "model.backbone.mask_ratio=0")
OPEN_SORA_PLAN = (
    "model=paper/open_sora_plan", PLAIN, "model.backbone.depth=6", "model.backbone.layouts.full_first=1",
    "model.backbone.layouts.full_last=1",
)  # fmt: skip
M4V = ("model=paper/m4v", PLAIN, "model.backbone.depth=4", "model.backbone.dual_depth=2")
OURS: dict[str, Case] = {
    **{name: case for name, case in CASES.items() if not name.startswith("paper/")},
    "full3d 1152, heads of 128": Case(("model=full3d", *WIDE, "model.backbone.heads=9"), **LARGE),
    "stiv_xl, 4 blocks": Case(STIV, (8, 48, 64, 64), (1280, 77)),
    "open_sora_plan, 6 blocks": Case(OPEN_SORA_PLAN, (8, 24, 44, 80), (4096, 512)),
    "m4v, 6 blocks": Case(M4V, (16, 2, 48, 80), (4096, 128)),
}
REFERENCES = {
    "reference full3d": ("full",),
    "reference 2p1d": ("space", "time"),
    "reference skiparse": ("single", "group"),
}
REFERENCE_SIZE = {"channels": 32, "width": 1152, "heads": 18, "depth": 4, "text_width": 4096}
TINY_REFERENCE = {"channels": 32, "width": 64, "heads": 2, "depth": 2, "text_width": 16}
TINY = ("model.backbone.width=192", "model.backbone.depth=2")
COUNTED_AS = 3.5 / 3  # attention for the bound, to what ModelCost counts of it


@dataclass(frozen=True)
class Work:
    """A model that is there to be run.

    Args:
        model: on the device.
        loss: of one forward pass.
        cost: of one clip.
        batch: clips.
        head_size: channels of a head, by which attention's rate is looked up.
    """

    model: nn.Module
    loss: Callable[[], Tensor]
    cost: ModelCost
    batch: int
    head_size: int

    def compile(self, backend: str) -> None:
        """Compile the blocks."""
        if isinstance(self.model, ReferenceDiT):
            for block in self.model.blocks:
                block.compile(fullgraph=True, backend=backend)
        else:
            self.model.compile_blocks(backend=backend)  # type: ignore[operator]

    def run(self) -> None:
        """Forward and backward."""
        self.loss().backward()
        self.model.zero_grad(set_to_none=True)


def work_of(name: str, device: torch.device, tiny: bool) -> Work:
    """A case, built on a device."""
    torch.manual_seed(0)
    return _reference(REFERENCES[name], device, tiny) if name in REFERENCES else _ours(name, device, tiny)


def _ours(name: str, device: torch.device, tiny: bool) -> Work:
    case = _tiny(OURS[name]) if tiny else OURS[name]
    found = described(case)
    with torch.device("meta"):
        counter = DenoiserCounter(found.build(attention="sdpa"), found.text_width)
        cost = counter.cost(StepInput(InputShape(found.latent), found.text_tokens))
        shapes = counter._input(InputShape(found.latent), found.text_tokens, 0)
    with device:
        model, read = found.build(attention="auto").train(), _filled(shapes, case.batch)

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return model(read).prediction.float().square().mean()  # type: ignore[no-any-return]

    return Work(model, loss, cost, case.batch, found.head_size)


def _tiny(case: Case) -> Case:
    """The same kind of model, small enough for any machine."""
    if case.latent is None:
        return replace(case, batch=1)
    small = (case.latent[0], min(case.latent[1], 4), 8, 8)
    heads = 3 if "model=paper/m4v" in case.words else 2  # whose rotary channels are given for heads of 64
    words = (*case.words, *TINY, f"model.backbone.heads={heads}")
    return replace(case, words=words, latent=small, text=(16, 8), batch=1)


def _filled(shapes: DenoiserInput, batch: int) -> DenoiserInput:
    """Random numbers in the shapes of one clip, on the default device; every text token is real."""

    def normal(like: Tensor) -> Tensor:
        return torch.randn(batch, *like.shape[1:])

    level = torch.rand(batch, *shapes.t.shape[1:])
    found = replace(shapes, latents=normal(shapes.latents), t=level, embedded_t=level)
    if shapes.text is not None:
        tokens, pooled = normal(shapes.text.tokens), normal(shapes.text.pooled)
        real = torch.ones(tokens.shape[:2], dtype=torch.bool)
        found = replace(found, text=TextEmbedding(tokens, real, pooled, (tokens.shape[1],) * batch))
    return replace(found, micro={name: torch.rand(batch, *one.shape[1:]) for name, one in shapes.micro.items()})


def _reference(cycle: Sequence[str], device: torch.device, tiny: bool) -> Work:
    size, grid, texts = (TINY_REFERENCE, (4, 4, 4), 8) if tiny else (REFERENCE_SIZE, (24, 32, 32), 128)
    tokens = grid[0] * grid[1] * grid[2]

    def built() -> tuple[nn.Module, list[Tensor]]:
        model = ReferenceDiT(**size, grid=grid, cycle=cycle).train()
        shapes = ((1, tokens, size["channels"]), (1, size["width"]), (1, texts, size["text_width"]))
        return model, [torch.randn(shape) for shape in shapes]

    with torch.device("meta"):
        hollow, inputs = built()
        with ProductCounter() as forward:
            made = hollow(*inputs)
        with ProductCounter() as backward:
            made.sum().backward()
    parameters = sum(one.numel() for one in hollow.parameters())
    batched = forward.batched + backward.batched
    cost = ModelCost(parameters, tokens, forward.total, backward.total, batched)
    with device:
        model, inputs = built()

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return model(*inputs).float().square().mean()  # type: ignore[no-any-return]

    return Work(model, loss, cost, 1, size["width"] // size["heads"])


def rows_of(name: str, settings: argparse.Namespace, ceilings: Ceilings) -> Iterator[dict[str, str]]:
    """A row for each mode."""
    for mode in settings.modes:
        row = {"note": settings.note, "model": name, "mode": mode}
        try:
            work = work_of(name, settings.device, settings.tiny)
            if mode == "compiled":
                work.compile("eager" if settings.tiny else "inductor")
            yield row | _measured(work, settings, ceilings)
            if settings.profile:
                _profile(work, settings.profile / f"{name} {mode}.json.gz".replace(" ", "-").replace(",", ""))
        except Exception as error:  # the rest of a run on a rented machine is worth having
            traceback.print_exc()
            yield row | dict.fromkeys(COLUMNS, "") | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        work = None  # type: ignore[assignment]
        _forget()


COLUMNS = (
    "batch", "tokens", "parameters", "ms", "tflops", "mfu", "bound_ms", "share_of_bound", "peak_gib", "head_size",
    "gemm_tflops", "copy_tbs", "sdpa_tflops", "error",
)  # fmt: skip


def _measured(work: Work, settings: argparse.Namespace, ceilings: Ceilings) -> dict[str, str]:
    device: torch.device = settings.device
    seconds_of(work.run, device, 1, warm=3)  # compiles, and fills what is kept
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_of(work.run, device, settings.repeat)
    flops, attention = (work.batch * one for one in (work.cost.training_flops, work.cost.attention_flops))
    gemm, sdpa = ceilings.gemm(), ceilings.sdpa(work.head_size)
    bound = (flops - attention) / gemm + attention * COUNTED_AS / sdpa
    vendor = vendor_rate(torch.cuda.get_device_name(device), torch.bfloat16) if device.type == "cuda" else None
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    values = (
        work.batch, work.batch * work.cost.tokens, work.cost.parameters, f"{seconds * 1e3:.2f}",
        f"{flops / seconds / 1e12:.3f}", f"{flops / seconds / vendor:.4f}" if vendor else "", f"{bound * 1e3:.2f}",
        f"{bound / seconds:.3f}", "" if peak is None else f"{peak:.2f}", work.head_size, f"{gemm / 1e12:.2f}",
        f"{ceilings.copy() / 1e12:.3f}", f"{sdpa / 1e12:.2f}", "",
    )  # fmt: skip
    return dict(zip(COLUMNS, map(str, values), strict=True))


def _profile(work: Work, path: Path) -> None:
    """Two steps as a trace that chrome://tracing and ui.perfetto.dev open."""
    from torch.profiler import profile

    path.parent.mkdir(parents=True, exist_ok=True)
    with profile(record_shapes=True) as found:
        work.run()
        work.run()
    found.export_chrome_trace(str(path))
    print("trace", path)


def _forget() -> None:
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every case and record the rows; 1 where one of them failed."""
    names = [*OURS, *REFERENCES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=names, choices=names)
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--repeat", type=int, default=20, help="steps that are timed; the median counts")
    parser.add_argument("--tiny", action="store_true", help="sizes for trying this script")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="where to write a trace of each row")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the CSV")
    parser.add_argument("--note", default="", help="a word for the rows")
    settings = parser.parse_args(arguments)
    if settings.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU is visible to torch; --device cpu --tiny tries the script without one")
    torch.set_float32_matmul_precision("high")
    ceilings, rows = Ceilings(settings.device, settings.tiny), []
    for name in settings.cases:
        for row in rows_of(name, settings, ceilings):
            rows.append(row)
            print(*(f"{key} {value}" for key, value in row.items() if value), sep="  ", flush=True)
    print(record("gpu_step", rows, settings.folder))
    return int(any(row["error"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
