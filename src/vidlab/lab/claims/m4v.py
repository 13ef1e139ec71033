"""M4V: sizes, FLOPs, history, corruption, stages of training, and the arithmetic of its tables."""

from fractions import Fraction
from functools import cache, partial
from math import lcm
from typing import Any

import torch

from vidlab.backbones.mmdim import published_flops
from vidlab.backbones.mmdim.published_flops import hybrid, table_6
from vidlab.clip import LatentShape, Stride
from vidlab.diffusion.objective import InputShape
from vidlab.diffusion.pyramid_history import frame_levels, ramp, token_total
from vidlab.diffusion.pyramid_stages import equal_bounds, stage_table
from vidlab.lab.claims.claim import Claim, Paper
from vidlab.lab.claims.sources import choice, chosen, cost, denoiser
from vidlab.layers.mixers.flops import attention_flops, mamba_flops
from vidlab.metrics.vbench.presets import PRESETS, T2V_QUALITY, T2V_SEMANTIC
from vidlab.metrics.vbench.scores import aggregate

STRIDE = Stride(8, 8, 8)
WIDTH, HEADS, TEXT = 1920, 30, 128
FINEST = 48 * 80  # tokens of a latent frame of 768 x 1280
# What the last of 31 latent frames is predicted from, at full resolution: eq. 7.
HISTORY = (LatentShape(16, 28, 24, 40), LatentShape(16, 1, 48, 80), LatentShape(16, 1, 96, 160))
# Table 6: dual-stream blocks with attention -> seconds and average score, as printed.
TABLE_6 = {0: (919.0, 56.43), 2: (842.5, 57.01), 4: (766.0, 57.59), 8: (613.0, 58.75)}
# Table 8, without and with self-guidance.
TABLE_8 = ((95.66, 96.11, 98.62, 99.38, 63.61, 64.69, 23.89), (95.60, 96.12, 98.61, 99.38, 63.89, 66.38, 26.62))
# Fig. 7, prompt 1: printed ranks of five systems by aesthetics, motion and coherence.
RANKS = (
    (0.966667, 0.9, 1.433333, 2.066667, 2.133333), (1.966667, 1.233333, 0.9, 1.3, 2.1),
    (1.533333, 1.3, 0.833333, 1.7, 2.133333),
)  # fmt: skip
TERA = 1e12


@cache
def _model() -> Any:
    return denoiser("paper/m4v", STRIDE)


def _forward() -> float:
    """Tera-FLOPs of the whole network for the last frame of 241, at full resolution."""
    return cost(_model(), InputShape(LatentShape(16, 1, 96, 160), HISTORY), 4096, TEXT).forward_flops / TERA


def _tokens() -> int:
    return token_total(30, 2, FINEST, 3)


def _attention() -> float:
    return attention_flops(_tokens() + TEXT, WIDTH) / TERA


def _mamba() -> float:
    """Text at both ends and a register for each of 31 frames; chunks of 256, Mamba-2's default."""
    return mamba_flops(_tokens() + 2 * TEXT + 31, WIDTH, HEADS, chunk=256) / TERA


def _line(depth: int, column: int) -> float:
    """The value at a depth on the straight line through the rows of 0 and 8."""
    first, last = TABLE_6[0][column], TABLE_6[8][column]
    return first + (last - first) * depth / 8


def _mean_of_seven(row: int) -> float:
    names = PRESETS["m4v_ablation"].dimensions
    return 100 * aggregate(dict(zip(names, (x / 100 for x in TABLE_8[row]), strict=True)), "m4v_ablation").total


def _raters() -> float:
    """The least number of people whose whole ranks have the printed means."""
    return float(lcm(*(Fraction(x).limit_denominator(60).denominator for row in RANKS for x in row)))


def _latent_frames(frames: int) -> float:
    from vidlab.autoencoders.pyramid_flow import PyramidFlowVAE

    with torch.device("meta"):
        return float(PyramidFlowVAE().latent_shape(frames, 384, 640)[1])


def _corrupted(place: int) -> float:
    """Noise of one of six earlier frames where the least is 0.05 and the most 0.30."""
    levels = ramp(torch.tensor([[0.05]], dtype=torch.float64), torch.tensor([[0.30]], dtype=torch.float64), 6)
    return float(levels[0, place])


def _jump(stage: int, name: str) -> float:
    return float(getattr(stage_table(equal_bounds(3))[stage].jump, name))


def _of_attention() -> float:
    """Numbers in the matrices of all blocks, where attention mixes and no temporal branch is."""
    from vidlab.layers.mixers.attention_mixer import AttentionMixer

    model: Any = denoiser("paper/m4v", STRIDE, mixer=AttentionMixer, temporal_branch=False)
    parts = (model.dual_blocks, model.blocks)
    named = [item for part in parts for item in part.named_parameters()]
    return float(sum(p.numel() for name, p in named if p.ndim == 2 and "registers" not in name))


def _stage(name: str, key: str) -> float:
    return chosen(f"experiment/paper/{name}", key)


def _scan_paths() -> float:
    return float(len(set(choice("model/mmdim").backbone.scan_paths)))


def _seconds(frames: int) -> float:
    return frames / 24


def _reported(name: str) -> float:
    return next(row.formula for row in table_6() if row.name == name)


COMPUTE = (
    *(
        Claim("Table 6", f"TFLOPs, L = {depth}: 2.31 L + 1.422 (8 - L) + 16 x 0.69", flops, partial(hybrid, depth),
              "TFLOPs",
              derived=True, remark="a formula fitted to the table")
        for depth, flops in ((0, "22.416"), (2, "24.192"), (4, "25.968"), (8, "29.52"))
    ),
    *(
        Claim("body, by notes on it", f"TFLOPs, {name}", f"{reported}", partial(_reported, name), "TFLOPs",
              remark=remark)
        for name, reported, remark in (
            ("Full attention", 55.44, ""), ("Pure Mamba", 26.64, ""),
            ("Parallel", 82.03, "attention everywhere, and besides it all of pure Mamba: 0.05 are not accounted for"),
        )
    ),
    Claim("Table 6", "TFLOPs of one attention, as fitted, from first principles", str(published_flops.ATTENTION),
          _attention,
          "TFLOPs",
          remark="-0.5 %: 8 N D^2 + 4 N^2 D with N = 15360 + 128 and D = 1920: the last of 31 frames, full resolution"),
    Claim("Table 6", "TFLOPs of one Mamba, as fitted, from first principles", str(published_flops.MAMBA), _mamba,
          "TFLOPs",
          remark="-1.5 %: four projections, convolution, recurrence in chunks of 256"),
    Claim("Table 6", "TFLOPs of 24 blocks of attention, from first principles", "55.44", lambda: 24 * _attention(),
          "TFLOPs",
          contradicts="attention alone comes to the published total: the MLPs of the blocks are not in the table"),
    Claim("Table 6", "TFLOPs of the whole network, MLPs and heads included", "29.52", _forward, "TFLOPs", slow=True,
          remark="what our counter counts for the same frame; the table counts mixers alone"),
    *(
        Claim("Table 6", f"seconds, L = {depth}, on the line through L = 0 and 8", str(TABLE_6[depth][0]),
              partial(_line, depth, 0), "s",
              contradicts="FLOPs, seconds and scores are all exactly linear in L: rows 2 and 4 look interpolated")
        for depth in (2, 4)
    ),
    *(
        Claim("Table 6", f"average score, L = {depth}, on the line through L = 0 and 8", str(TABLE_6[depth][1]),
              partial(_line, depth, 1))
        for depth in (2, 4)
    ),
    Claim("appendix A.2", "latency of Mamba everywhere over M4V's: about 1.5", "1.5",
          lambda: TABLE_6[0][0] / TABLE_6[8][0],
          contradicts="the text says it of a training iteration, the table of inference"),
)  # fmt: skip
MODEL = (
    Claim("appendix A.2", "dual-stream blocks", "8", lambda: float(len(_model().dual_blocks))),

    Claim("body, by notes on it", "matrices of 8 + 16 blocks with attention: 528 D^2", "1,946,419,200", _of_attention,
          within=0.0),
    Claim("appendix A.1", "kinds of scan paths", "8", _scan_paths),
    Claim("eq. 7", "level of the newest earlier frame, of 0 to 2", "2", lambda: float(frame_levels(30, 2)[-1])),
    Claim("eq. 7", "level of the one before it", "1", lambda: float(frame_levels(30, 2)[-2])),
    Claim("eq. 7", "frames at the coarsest level, of 30", "28",
          lambda: float(sum(level == 0 for level in frame_levels(30, 2)))),
    Claim("appendix A.3", "noise of the second of six frames, from 0.05 to 0.30", "0.10", partial(_corrupted, 1),
          remark="equal intervals"),
    *(
        Claim("Pyramid Flow, jumps", f"{name} of the jump to stage {stage}", value, partial(_jump, stage, name),
              derived=True,
              remark="the formula evaluated: e = 1 - sigma at the end of the stage before; 1 / (2 - e) and sqrt(3) (1 "
              "- e) / (2 - e)")
        for stage, name, value in ((1, "alpha", "0.599880"), (1, "beta", "0.693028"), (2, "alpha", "0.749625"),
                                   (2, "beta", "0.433662"))
    ),
    *(
        Claim("appendix D.1", f"latent frames of {frames} frames at stride 8", latent, partial(_latent_frames, frames))
        for frames, latent in ((57, "8"), (121, "16"), (241, "31"))
    ),
    *(
        Claim("appendix D.1, E.1", f"seconds of {frames} frames at 24 per second", seconds, partial(_seconds, frames),
              "s")
        for frames, seconds in ((57, "2"), (121, "5"))
    ),
)  # fmt: skip
TRAINING = (
    Claim("appendix D.1", "share of images at 1:8", "0.111", partial(_stage, "m4v_57f", "objective.image_share")),
    Claim("appendix D.1", "learning rate at 384p, x 1e-4", "1", lambda: 1e4 * _stage("m4v_images", "optimizer.lr"),
          within=1e-9),
    Claim("appendix D.1", "learning rate at 768p, x 1e-5", "5", lambda: 1e5 * _stage("m4v_768p", "optimizer.lr"),
          within=1e-9),
    Claim("appendix D.1", "learning rate of reward learning, x 1e-5", "1", lambda: 1e5 * _stage("m4v_reward",
          "optimizer.lr"), within=1e-9),
    *(
        Claim("appendix D.1", f"steps of {stage}", steps, partial(_stage, name, "trainer.max_steps"))
        for stage, name, steps in (
            ("57 frames", "m4v_57f", "40,000"), ("121 frames", "m4v_121f", "60,000"), ("768p", "m4v_768p", "20,000"),
            ("reward learning", "m4v_reward", "10,000"),
        )
    ),
    Claim("appendix D.2", "steps of fine-tuning after initialization from attention", "20,000",
          partial(_stage, "m4v_images", "trainer.max_steps")),
    Claim("appendix D.1", "weight of the reward", "0.1", partial(chosen, "losses/reward_clip_hps", "reward.weight")),
    Claim("appendix D.1", "latent frames that are rewarded", "8", partial(chosen, "losses/reward_clip_hps",
          "reward.frames")),
    Claim("appendix E.3", "latent frame from which self-guidance works", "8",
          partial(chosen, "guidance/self_quality", "first_frame")),
)  # fmt: skip
SCORES = (
    Claim("Table 7", "dimensions of the quality score", "7", lambda: float(len(T2V_QUALITY))),
    Claim("Table 7", "dimensions of the semantic score", "9", lambda: float(len(T2V_SEMANTIC))),
    Claim("Table 7", "weight of dynamic degree", "0.5",
          lambda: PRESETS["vbench_t2v"].groups[0].weights["dynamic_degree"]),
    Claim("Table 7", "weight of quality over that of semantics", "4",
          lambda: PRESETS["vbench_t2v"].groups[0].weight / PRESETS["vbench_t2v"].groups[1].weight),
    Claim("appendix C.1", "dimensions of the customized VBench", "7",
          lambda: float(len(PRESETS["m4v_ablation"].dimensions))),
    Claim("Table 6, appendix C.1", "average score at L = 8, as the mean of seven dimensions", "58.75",
          partial(_mean_of_seven, 0),
          remark="here of Table 8, the finished model without self-guidance",
          contradicts="a plain mean of these seven, four of which are above 95 in Table 8, cannot be near 58.75: "
          "Table 6 averages something else"),
    Claim("appendix B.2, Fig. 7", "sum of the ranks of five systems, 1 to 5", "15", lambda: sum(RANKS[0]), within=0.05,
          remark="prompt 1, aesthetics; the other columns sum to 7.5 as well",
          contradicts="printed means lie between 0.5 and 2.5: they are not ranks from 1 to 5"),
    Claim("appendix B.2, Fig. 7", "participants: over 50", "50", _raters,
          contradicts="all printed means are multiples of 1/30, those of 30 people"),
)  # fmt: skip

PAPER = Paper("M4V", "arXiv 2506.10915", (*COMPUTE, *MODEL, *TRAINING, *SCORES))
