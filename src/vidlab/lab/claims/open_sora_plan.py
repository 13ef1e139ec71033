"""Open-Sora Plan v1.3: attention distances, token buckets, adaptive clipping, sizes, data and scores."""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from vidlab.clip import LatentShape, Stride
from vidlab.data.samplers.buckets import Bucketing
from vidlab.diffusion.betas import LinearBetas, ZeroTerminalSNR
from vidlab.diffusion.parameterizations import VPrediction
from vidlab.diffusion.schedules import VariancePreserving
from vidlab.diffusion.weightings import MinSNR
from vidlab.lab.claims.claim import Claim, Paper
from vidlab.lab.claims.sources import choice, chosen, denoiser, parameters
from vidlab.lab.claims.wfvae import model_s
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.layers.layout_metrics import closed_form_distance, comparison, group_ids, measured_distance
from vidlab.layers.layouts import Full3D, Grid, GroupSkip, SingleSkip, TokenLayout
from vidlab.training.optimization.clipping import AdaptiveClipper, NormStatistics

GRID = Grid(24, 32, 32)  # latents of 93 x 512 x 512 in patches of 1 x 2 x 2
STRIDE = Stride(4, 8, 8)
SCHEDULE = VariancePreserving(ZeroTerminalSNR(LinearBetas()))
TABLE_2 = (
    ("full 3D", "1.000"), ("2+1D", "1.957"), ("skip+window k=2", "1.500"), ("skip+window k=4", "1.750"),
    ("skip+window k=8", "1.875"), ("Skiparse k=2", "1.250"), ("Skiparse k=4", "1.563"), ("Skiparse k=8", "1.766"),
)  # fmt: skip
# Tables 4 and 5 and 8, as printed.
FUNNEL = {"sliced": 100, "cuts": 97, "motion": 89, "text": 89, "aesthetic": 49, "technical": 44, "again": 42}
PLAIN = {"action": 81.8, "object": 70.97, "spatial": 44.46, "scene": 28.56, "multiple": 35.87}
REFINED = {"action": 86.4, "object": 84.72, "spatial": 49.63, "scene": 52.92, "multiple": 44.57}


def _layouts(name: str) -> tuple[TokenLayout, ...]:
    return next(row.layouts for row in comparison() if row.name == name)


def _closed(name: str) -> float:
    return closed_form_distance(_layouts(name), GRID)


def _counted(name: str) -> float:
    return measured_distance(_layouts(name), GRID)


def _near_share(k: int) -> float:
    """Share of tokens that one attends to in either skip."""
    single, group = (group_ids(layout, GRID) for layout in (SingleSkip(k), GroupSkip(k)))
    return float(((single == single[0]) | (group == group[0])).float().mean())


def _attention_share(k: int) -> float:
    """FLOPs of the products of attention over those of full attention, the mean of both skips."""
    both = sum(layout.attention_flops(GRID, 1) for layout in (SingleSkip(k), GroupSkip(k)))
    return both / 2 / Full3D().attention_flops(GRID, 1)


@cache
def _rule(max_tokens: int, ratios: Sequence[Sequence[int]] | None = None) -> Bucketing:
    return Bucketing(max_tokens, 16 if ratios else 32, ratios)


def _side(max_tokens: int, height: int, width: int, side: str) -> float:
    """Height or width of the bucket of a clip of one frame."""
    one = np.array([1])
    found = _rule(max_tokens).assign(one, height * one, width * one, 24.0 * one)
    return float(getattr(found.buckets[0], side))


def _full_layers() -> float:
    blocks: Any = _model("open_sora_plan").transformer_blocks
    return float(sum(isinstance(block.layout, Full3D) for block in blocks))


@cache
def _model(name: str) -> torch.nn.Module:
    return denoiser(f"paper/{name}", STRIDE, LatentShape(8, 24, 44, 80))


def _gigabytes(name: str) -> float:
    return 4 * parameters(_model(name), 1e9)


def _resolution_stride() -> float:
    return model_s().stride.height * chosen("model/paper/open_sora_plan", "backbone.patch[1]")


def _clipped(variant: str) -> float:
    """The moving mean after one step in which one of four ranks is an outlier."""
    before = NormStatistics(0.30, 4e-4, updates=200)
    after = AdaptiveClipper(variant).decide(before, (0.28, 0.31, 0.29, 2.0)).statistics
    assert after.ema is not None
    return after.ema


def _survivors() -> float:
    return AdaptiveClipper().decide(NormStatistics(0.30, 4e-4, 200), (0.28, 0.31, 0.29, 2.0)).multipliers[0]


def _snr_at_end() -> float:
    path = SCHEDULE.coefficients(torch.tensor(1.0, dtype=torch.float64))
    return float((path.alpha / path.sigma) ** 2)


def _weight_at_end() -> float:
    path = SCHEDULE.coefficients(torch.tensor(1.0, dtype=torch.float64))
    return float(MinSNR(5.0).weight(path, VPrediction()))


def _lost(before: str, after: str) -> float:
    return FUNNEL[before] - FUNNEL[after]


def _gain(name: str) -> float:
    return REFINED[name] - PLAIN[name]


def _stage_sum() -> float:
    """Percentages of a stage's tasks, of the stage that is furthest from 100."""
    stages = choice("conditioning/masked_video_curriculum").stages
    return 100 * max((sum(stage.ratios.values()) for stage in stages), key=lambda total: abs(total - 1))


HALF = "the table drops the term 1/THW of equation 10: 1.5625, rounded up"


def _control_channels() -> float:
    """Channels of the image controller, as its conditioning asks for them."""
    conditioning = instantiate(choice("conditioning/masked_video"), "conditioning")
    return float(sum(conditioning.control_channels(LatentShape(8, 24, 44, 80), STRIDE)))


def _grid_of(frames: int, height: int, width: int) -> tuple[float, float]:
    """Token frames and rows of a clip."""
    latent = model_s().latent_shape(frames, height, width)
    patch = choice("model/paper/open_sora_plan").backbone.patch
    return latent[1] / patch[0], latent[2] / patch[1]


ATTENTION = (
    *(
        Claim("Table 2, eqs. 8-10", f"average attention distance, {name}, by the formula", value,
              partial(_closed, name), remark=HALF if name == "Skiparse k=4" else "")
        for name, value in TABLE_2
    ),
    *(
        Claim(
            "Table 2", f"average attention distance, {name}, counted over all pairs", value, partial(_counted, name),
            slow="window" in name or name == "2+1D", remark=HALF if name == "Skiparse k=4" else "",
            contradicts="section 2.2.2 sets it to 1 exactly; with 0 from a token to itself it is 1 - 1/L"
            if name == "full 3D" else "",
        )
        for name, value in TABLE_2
    ),
    Claim(
        "Table 1", "skip + window, k = 4, by the table's 2 - (1/k + 1/THW)", "1.74996",
        partial(_closed, "skip+window k=4"),
        contradicts="equation 9 has k/THW in place of 1/THW; counting agrees with equation 9",
        remark="the table's formula is misprinted",
    ),
    *(
        Claim("section 2.2.2", f"share of full attention's products that Skiparse computes, k = {k}", str(1 / k),
              partial(_attention_share, k), remark="1/k: k groups of L/k tokens")
        for k in (2, 4, 8)
    ),
    *(
        Claim("section 6.2", f"share of tokens that one attends to in either skip, k = {k}", str(2 / k - 1 / k**2),
              partial(_near_share, k),
              remark="2/k - 1/k^2, counted in both partitions; the report's text lost its minus")
        for k in (2, 4, 8)
    ),
    Claim("section 2.2.1", "layers with full attention: the first and the last two", "4", _full_layers),
)  # fmt: skip

SIZES = (
    Claim("Table 8", "parameters of the denoiser", "2.7", lambda: parameters(_model("open_sora_plan"), 1e9), "B",
          remark="2.77 is cut off, not rounded", contradicts="section 6.2 speaks of the current 2B model"),
    Claim("released files", "text to video, two shards in float32: 9.98 + 1.11 GB", "11.09",
          partial(_gigabytes, "open_sora_plan"), "GB"),
    Claim("released files", "image to video, two shards in float32: 9.98 + 1.15 GB", "11.13",
          partial(_gigabytes, "open_sora_plan_i2v"), "GB"),
    Claim("section 2.2.3", "longest text", "512",
          partial(chosen, "system/open_sora_plan", "system.max_tokens"),
          "tokens"),
    Claim("section 2.2.3", "gamma of min-SNR", "5.0",
          partial(chosen, "objective/v_prediction", "weighting.gamma")),
    Claim("section 2.2.3", "SNR at the last timestep", "0", _snr_at_end, within=0.0),
    Claim("section 2.2.3", "min-SNR weight of v-prediction at the last timestep", "0", _weight_at_end, within=0.0,
          derived=True, remark="not printed; follows from SNR 0",
          contradicts="zero terminal SNR is there to train the step where sampling starts, and this weight leaves it "
          "out"),
    Claim("section 2.2.2", "frames of the grid of 93 x 512 x 512", "24",
          lambda: _grid_of(93, 512, 512)[0]),
    Claim("section 2.2.2", "rows of the grid of 93 x 512 x 512", "32", lambda: _grid_of(93, 512, 512)[1]),
)  # fmt: skip


RATIOS = ((1, 1), (3, 4), (9, 16))
BUCKETS = (
    Claim("section 3.1", "resolution stride s", "16", _resolution_stride, "pixels"),
    Claim("eq. 20", "fewest tokens, m = 65536, ratios 1:1, 3:4, 9:16", "36,864",
          lambda: float(_rule(65536, RATIOS).token_range()[0])),
    Claim("section 3.1", "most tokens, m = 65536", "65,536", lambda: float(_rule(65536, RATIOS).token_range()[1])),
    Claim("eq. 19", "height at 9:16", "144",
          lambda: (_rule(65536, ((9, 16),)).token_range()[0] * 9 / 16) ** 0.5, "pixels"),
    Claim("eq. 19", "width at 9:16", "256", lambda: (_rule(65536, ((9, 16),)).token_range()[0] * 16 / 9) ** 0.5,
          "pixels"),
    Claim("section 2.3.1", "side of 1080 x 1080 within 236544", "480", partial(_side, 236544, 1080, 1080, "height"),
          "pixels",
          remark="by the released rule: shrink, cut whole pixels off, round down to 32"),
    Claim("section 2.3.1", "height of 720 x 1280 within 236544", "352", partial(_side, 236544, 720, 1280, "height"),
          "pixels"),
    Claim("section 2.3.1", "width of 720 x 1280 within 236544", "640", partial(_side, 236544, 720, 1280, "width"),
          "pixels"),
    Claim("section 2.3.1", "side of 1080 x 1080 within 102400", "320", partial(_side, 102400, 1080, 1080, "height"),
          "pixels"),
)  # fmt: skip

TRAINING = (
    Claim("section 3.2", "alpha of the moving averages", "0.99",
          partial(chosen, "callbacks/adaptive_clipping", "adaptive_clipping.alpha")),
    Claim("eq. 24", "standard deviations of the threshold", "3",
          partial(chosen, "callbacks/adaptive_clipping", "adaptive_clipping.sigmas")),
    Claim("eq. 26", "factor of the three surviving ranks of four", "1.333", _survivors),
    Claim("eq. 22", "moving mean 0.30 after norms 0.28, 0.31, 0.29, 2.0, read literally", "0.3170",
          partial(_clipped, "paper"),
          contradicts="text below and Fig. 11 (f) update with the processed maximum, 0.31: the mean becomes 0.3001"),
    Claim("text below eq. 26", "the same with the processed maximum", "0.3001", partial(_clipped, "released")),
    Claim("section 2.3.1", "percentages of tasks of each of seven stages, the worst", "100", _stage_sum, "%",
          contradicts="the released settings of the last stage swap Continuation (5 %) and Random (10 %)"),
    Claim("section 2.3.1", "channels of controls: masked video and mask", "12",
          _control_channels, remark="8 of latents, and one mask channel for each of 4 frames"),
)  # fmt: skip


DATA = (
    Claim("section 4.2", "area left by the widest crop, 0.6 H x 0.6 W", "36", lambda: 100 * (1 - 2 * 0.20) ** 2, "%"),
    Claim("section 4.2, Table 5", "videos that the aesthetic step removes: about 40 %", "40",
          partial(_lost, "text", "aesthetic"), "%", remark="of all videos; of those that reach it 45 %"),
    Claim("section 4.2, Table 5", "videos that the technical step removes", "5",
          partial(_lost, "aesthetic", "technical"), "%"),
    Claim("section 4.2, Table 5", "videos that the second motion check removes", "2",
          partial(_lost, "technical", "again"), "%"),
    Claim("Table 4", "images chosen from LAION", "0.1", lambda: 160e3 / 1e6, "M",
          contradicts="section 4.1 says 160k, which rounds to 0.2 M"),
    Claim("section 4.1", "English share of Anytext-3M: about half", "50", lambda: 100 * 1.8 / 3, "%", within=5.0,
          contradicts="Table 4 lists 1.8 M of 3 M images, 60 %"),
    *(
        Claim("section 5.4, Table 8", f"what the refiner adds, {name}", claimed, partial(_gain, key), "points",
              within=within,
              remark="section 5.4 reports its own figure at 480p", contradicts=against)
        for name, key, claimed, within, against in (
            ("human action: more than 5 %", "action", "5", 0.0, "Table 8 gives 4.6 points, or 5.6 % of the score"),
            ("spatial relationship: more than 5 %", "spatial", "5", None, ""),
            ("objects: 15 %", "object", "15", None, "Table 8 gives 13.75 points, or 19 % of the score"),
            ("several objects: 10 %", "multiple", "10", None, "Table 8 gives 8.7 points, or 24 % of the score"),
            ("scenes: 25 %", "scene", "25", None, ""),
        )
    ),
)  # fmt: skip

PAPER = Paper("Open-Sora Plan v1.3", "arXiv 2412.00131", (*ATTENTION, *SIZES, *BUCKETS, *TRAINING, *DATA))
