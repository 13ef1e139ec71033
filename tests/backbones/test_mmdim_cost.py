"""What MM-DiM has and computes: parameters by arithmetic, FLOPs by formula, and M4V's table 6."""

from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.utils.flop_counter import FlopCounterMode

from vidlab.backbones.dit import DiT
from vidlab.backbones.mmdim import MMDiM
from vidlab.backbones.mmdim.published_flops import hybrid, table_6
from vidlab.backbones.mmdim.temporal import TemporalBranch, temporal_grids, temporal_mask
from vidlab.clip import LatentShape, Stride
from vidlab.cost.flops import DenoiserCounter, StepInput
from vidlab.diffusion.gaussian import GaussianObjective
from vidlab.diffusion.objective import InputShape
from vidlab.diffusion.parameterizations import Velocity
from vidlab.diffusion.schedules import LinearPath
from vidlab.diffusion.time_samplers import Uniform
from vidlab.diffusion.weightings import Constant
from vidlab.errors import UserError
from vidlab.lab.compose import make_backbone
from vidlab.layers.layouts import Full3D, LayerPlan
from vidlab.layers.mixers.attention_mixer import AttentionMixer
from vidlab.layers.mixers.flops import attention_flops, mamba_flops, ssd_flops
from vidlab.layers.mixers.recomposition import FrameGrids
from vidlab.layers.mixers.ssd_mixer import SSDMixer
from vidlab.training.denoiser_plan import DenoiserPlan

CONF = Path(__file__).parents[2] / "conf"
D, N, TEXT, S = 32, 2, 10, 5
LATENT = LatentShape(channels=3, frames=4, height=4, width=6)
V, PATCH = 4 * 2 * 3, 12  # tokens of 1x2x2, numbers in one
ONCE = 256 * D + D * D + TEXT * D + D * D  # of a clip: noise level and pooled text


def counted(**settings):
    sizes = {"width": D, "depth": 3, "heads": N, "dual_depth": 2, "patch": (1, 2, 2), "mixer": SSDMixer}
    with torch.device("meta"):
        model = MMDiM(latent=LATENT, text_width=TEXT, **(sizes | settings))
    return DenoiserCounter(model, TEXT).cost(StepInput(InputShape(LATENT), S))


def by_hand(mixer: int, dual: int = 2, temporal: bool = True) -> int:
    """Multiply-adds of one clip, mixers aside, of which ``mixer`` is the sum."""
    joint = S + V
    stream = 6 * D * D  # modulation, once a clip
    of_dual = 2 * stream + joint * 12 * D * D + 2 * joint**2 * D
    single = 3 * D * D + joint * (4 + 5) * D * D
    frames = 4 * V * D * D + 2 * 4 * 4 * 6 * D  # four frames of six places attend to each other
    ends = S * TEXT * D + 2 * V * PATCH * D + 2 * D * D + ONCE
    return dual * of_dual + 3 * (single + temporal * frames) + ends + mixer


def test_flops_by_hand():
    tokens = 2 * S + V + 4  # text at both ends, and a register for each of four frames
    rest, chunk = 2 * tokens * D * (4 * D + N) + 2 * tokens * D * 4, tokens  # no more than one chunk
    recurrence = N * (2 * chunk * chunk * (16 + 16) + 4 * chunk * 16 * 16)
    assert counted().forward_flops == 2 * by_hand(0) + 3 * (rest + recurrence)
    assert counted(dual_depth=0, temporal_branch=False).forward_flops == 2 * by_hand(0, 0, False) + 3 * (
        rest + recurrence
    )
    attention = 2 * tokens * 3 * D * D + 4 * tokens**2 * D
    assert counted(mixer=AttentionMixer).forward_flops == 2 * by_hand(0) + 3 * attention


@pytest.mark.parametrize("ssm", ["auto", "torch", "mamba_ssm"])
def test_every_kernel_counts_by_the_formula(ssm):
    make = partial(MMDiM, width=D, depth=3, heads=N, dual_depth=2, patch=(1, 2, 2), mixer=SSDMixer)
    plan = DenoiserPlan(make, LATENT, TEXT, TEXT, {"attention": "auto", "ssm": ssm}, (), "none")
    objective = GaussianObjective(LinearPath(), Velocity(), Constant(), Uniform())
    assert plan.mean_cost(objective, LATENT, lambda shape: StepInput(shape, S)) == counted()


def test_a_state_space_kernel_is_refused_where_there_is_no_state_space():
    make = partial(DiT, layouts=LayerPlan((Full3D(),)), width=24, depth=1, heads=2, patch=(1, 2, 2))
    with pytest.raises(UserError, match="ssm=torch: the model has no state-space kernel"):
        DenoiserPlan(make, LATENT, TEXT, TEXT, {"attention": "auto", "ssm": "torch"}, (), "none")


def test_the_recurrence_is_linear_in_the_tokens():
    flops = [ssd_flops(tokens, 30, 64, 64) for tokens in (64, 128, 640)]
    assert flops == [flops[0], 2 * flops[0], 10 * flops[0]] and ssd_flops(65, 30, 64, 64) == 2 * flops[0]
    # per chunk of 64: four products of 64 x 64 x 64
    assert flops[0] == 30 * 4 * 2 * 64**3


def test_parameters_by_arithmetic():
    dual = 2 * (18 * D * D + (6 + 3 + 1 + 4 + 1) * D + 2 * (D // N))
    ssd = D * (4 * D + N) + 4 * D + N + 5 * D + 3 * N
    single = (3 + 4 + 5) * D * D + (3 + 4 + 1) * D + 3 * D + 4 * D * D + 4 * D + ssd
    once = PATCH * D + D + D * PATCH + PATCH + TEXT * D + D + 2 * D * D + 2 * D + ONCE + 4 * D
    assert counted().parameters == 2 * dual + 3 * single + once


def published():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["model=paper/m4v"])


def test_the_published_size():
    """528 D^2 for the blocks with attention; a single-stream block of SSD has one D^2 more, dt and what is temporal."""
    config = published()
    sizes, read = config.model.backbone, config.model.published
    build = make_backbone(config.model, Stride(1, 8, 8))
    shapes = {"latent": LatentShape(**read.latent), "text_width": read.text_width}
    with torch.device("meta"):
        model = build(**shapes)
        plain = build(**shapes, mixer=AttentionMixer, temporal_branch=False)
    d, heads = 1920, 30
    assert (sizes.width, sizes.heads, sizes.dual_depth, sizes.depth) == (d, heads, 8, 16)
    assert (
        model.contexts.rope[0] == (8, 12, 12)
        and model.head.out_features == 64
        and model.text_tokens.in_features == 4096
    )

    def matrices(module):
        return sum(p.numel() for n, p in module.named_parameters() if p.ndim == 2 and "registers" not in n)

    assert matrices(plain.dual_blocks) + matrices(plain.blocks) == 528 * d * d == 1_946_419_200
    assert [matrices(block) for block in plain.dual_blocks] == [36 * d * d] * 8
    assert [matrices(block) for block in plain.blocks] == [15 * d * d] * 16
    assert [matrices(block) for block in model.blocks] == [(16 + 4) * d * d + heads * d] * 16
    total = sum(p.numel() for p in plain.parameters())
    # what is around the blocks is 1.5 % of that: "about 1.97 billion"
    assert total == pytest.approx(1.97e9, rel=0.01)


def test_table_6():
    assert [row.reported for row in table_6()] == [55.44, 82.03, 26.64, 29.52]
    for row in table_6():
        exact = row.name != "Parallel"  # 0.05 are not accounted for
        assert row.formula == pytest.approx(row.reported, abs=1e-9 if exact else 0.06), row
    # 0, 2, 4 and 8 dual-stream blocks
    assert [hybrid(depth) for depth in (0, 2, 4, 8)] == pytest.approx([22.416, 24.192, 25.968, 29.52])
    assert {round(b - a, 9) for a, b in pairwise(hybrid(depth) for depth in range(9))} == {0.888}


def test_first_principles_beside_table_6():
    """The last latent frame of 31 at full resolution, 128 text tokens: 2.31 and 0.51 as fitted."""
    frames = 28 * 240 + 960 + 3840 + 3840
    attention, mamba = attention_flops(frames + 128, 1920), mamba_flops(frames + 256 + 31, 1920, 30, chunk=256)
    assert (frames, round(attention / 1e12, 3), round(mamba / 1e12, 3)) == (15360, 2.299, 0.502)
    assert attention / 2.31e12 == pytest.approx(0.995, abs=1e-3) and mamba / 0.51e12 == pytest.approx(0.985, abs=1e-3)
    # ours has chunks of 64, and a temporal branch of 30 earlier frames and 16 parts of the current one
    assert mamba_flops(frames + 256 + 31, 1920, 30) / 1e12 == pytest.approx(0.479, abs=1e-3)
    grids = FrameGrids(((12, 20),) * 28 + ((24, 40), (48, 80), (48, 80)), predicted=1)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        TemporalBranch(1920, 30)(torch.empty(1, grids.tokens, 1920), temporal_grids(grids), temporal_mask(grids))
    assert grids.tokens == frames and temporal_mask(grids).shape == (46, 46)
    assert counter.get_total_flops() / 1e12 == pytest.approx(0.329, abs=1e-3)
