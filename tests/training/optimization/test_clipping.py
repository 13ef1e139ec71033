import math

import numpy as np
import pytest
import torch

from vidlab.errors import UserError
from vidlab.training.optimization.clipping import AdaptiveClipper, DeviceStatistics, NormStatistics, global_norm

OLD = NormStatistics(ema=0.30, variance=4e-4, updates=50)
NAN, INF = math.nan, math.inf


def test_one_abnormal_rank_by_hand():
    decision = AdaptiveClipper("released").decide(OLD, [0.28, 0.31, 0.29, 2.0])
    assert decision.threshold == pytest.approx(0.36)
    assert decision.abnormal == (3,) and decision.multipliers == (4 / 3, 4 / 3, 4 / 3, 0.0)
    scaled = [m * n for m, n in zip(decision.multipliers, decision.norms, strict=True)]
    assert scaled == pytest.approx([0.37333, 0.41333, 0.38667, 0], abs=1e-5)
    assert (decision.max_norm, decision.processed_max) == (2.0, 0.31)
    assert decision.statistics.ema == pytest.approx(0.3001, rel=1e-9)
    assert decision.statistics.variance == pytest.approx(3.969801e-4, rel=1e-9)  # 3.97e-4 with the old mean
    assert decision.deviation == pytest.approx((2 - 0.3001) ** 2)
    assert decision.statistics.updates == 51


def test_the_paper_lets_an_abnormal_norm_into_the_statistics():
    decision = AdaptiveClipper("paper").decide(OLD, [0.28, 0.31, 0.29, 2.0])
    assert decision.multipliers == (4 / 3, 4 / 3, 4 / 3, 0.0) and decision.processed_max == 0.31
    assert decision.statistics.ema == pytest.approx(0.317)
    assert decision.statistics.variance == pytest.approx(0.99 * 4e-4 + 0.01 * 1.683**2)
    assert decision.statistics.variance == pytest.approx(0.02872, abs=5e-6)


def test_two_abnormal_ranks_by_hand():
    released = AdaptiveClipper("released").decide(OLD, [0.28, 1.5, 0.29, 2.0])
    assert released.multipliers == (2.0, 0.0, 2.0, 0.0) and released.statistics == OLD
    paper = AdaptiveClipper("paper").decide(OLD, [0.28, 1.5, 0.29, 2.0])
    assert paper.multipliers == released.multipliers and paper.statistics.ema == pytest.approx(0.317)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_the_first_norm_begins_both_statistics(variant):
    decision = AdaptiveClipper(variant).decide(NormStatistics(), [0.5, 8.0, 0.25])
    assert decision.multipliers == (1, 1, 1) and decision.threshold == INF
    assert decision.statistics == NormStatistics(8.0, 8.0, 1)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_what_is_no_number_is_abnormal_from_the_first_step_on(variant):
    clipper = AdaptiveClipper(variant)
    first = clipper.decide(NormStatistics(), [NAN, 2.0, INF, 1.0])
    assert first.multipliers == (0, 2, 0, 2) and first.statistics == NormStatistics(2.0, 2.0, 1)
    nothing = clipper.decide(NormStatistics(), [NAN, INF])
    assert nothing.skip and nothing.statistics == NormStatistics()
    assert (nothing.max_norm, nothing.processed_max, nothing.deviation) == (0, 0, 0)
    later = clipper.decide(OLD, [NAN, -INF])
    assert later.skip and later.statistics == OLD


def test_one_rank_alone_is_skipped_and_leaves_the_released_statistics():
    released = AdaptiveClipper("released").decide(OLD, [2.0])
    assert released.skip and released.multipliers == (0.0,) and released.statistics == OLD
    assert AdaptiveClipper("paper").decide(OLD, [2.0]).statistics.ema == pytest.approx(0.317)
    assert not AdaptiveClipper().decide(OLD, [0.35]).skip


def test_a_norm_at_the_threshold_is_normal():
    old = NormStatistics(ema=1.0, variance=4.0, updates=9)
    assert AdaptiveClipper().decide(old, [7.0, math.nextafter(7.0, 8.0)]).abnormal == (1,)
    assert AdaptiveClipper(sigmas=2.0).decide(old, [7.0]).threshold == 5.0


def test_warm_up_keeps_finite_norms():
    clipper, statistics = AdaptiveClipper(warmup_steps=3), NormStatistics()
    for norms in ([0.001, 0.001], [9.0, NAN], [50.0, 50.0]):
        decision = clipper.decide(statistics, norms)
        statistics = decision.statistics
        assert decision.threshold == INF and len(decision.abnormal) == sum(map(math.isnan, norms))
    assert statistics.updates == 3
    assert clipper.decide(statistics, [50.0, 1.0]).abnormal == (0,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "paprika"}, r"callbacks.adaptive_clipping.variant=paprika must be one of released, paper"),
        ({"alpha": 1.0}, r"callbacks.adaptive_clipping.alpha=1.0 must lie in \[0, 1\)"),
        ({"sigmas": 0.0}, r"callbacks.adaptive_clipping.sigmas=0.0"),
        ({"warmup_steps": -1}, r"callbacks.adaptive_clipping.warmup_steps=-1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        AdaptiveClipper(**settings)


def reference(norms: np.ndarray, variant: str, warmup: int = 0, alpha: float = 0.99) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers (steps, ranks) and the statistics after each step (steps, 2), straight from the equations."""
    ranks = norms.shape[1]
    multipliers, history = np.zeros_like(norms), np.full((len(norms), 2), np.nan)
    ema = var = np.nan
    updates = 0
    for step, gn in enumerate(norms):
        bound = np.inf if np.isnan(ema) or updates < warmup else ema + 3 * var**0.5
        with np.errstate(invalid="ignore"):
            delta = np.where(np.isfinite(gn) & (gn <= bound), 1.0, 0.0)
        m = delta.sum()
        if m:
            multipliers[step] = delta * ranks / m
        pool = gn[np.isfinite(gn)] if variant == "paper" else gn[delta == 1]
        frozen = variant == "released" and ranks - m > 1 and not np.isnan(ema)
        if pool.size and not frozen:
            p = pool.max()
            if np.isnan(ema):
                ema = var = p
            else:
                ema = alpha * ema + (1 - alpha) * p
                var = alpha * var + (1 - alpha) * (p - ema) ** 2
            updates += 1
        history[step] = ema, var
    return multipliers, history


def troubled_norms(steps: int, ranks: int, seed: int = 0) -> np.ndarray:
    """Falling log-normal norms with spikes, NaN and infinity on chosen ranks, now and then on all."""
    rng = np.random.default_rng(seed)
    norms = np.exp(rng.normal(0, 0.1, (steps, ranks))) * np.linspace(1, 0.3, steps)[:, None]
    norms[0, 0], norms[1] = np.nan, np.inf
    norms[20::17, -1] *= 100
    norms[30::41, 0] = np.nan
    norms[33::37, ranks // 2] = np.inf
    norms[100::50] *= 1000
    return norms


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("warmup", [0, 40])
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_three_hundred_steps_against_numpy(variant, warmup, ranks):
    norms = troubled_norms(300, ranks)
    expected, history = reference(norms, variant, warmup)
    clipper, statistics = AdaptiveClipper(variant, warmup_steps=warmup), NormStatistics()
    skipped = 0
    for step, row in enumerate(norms.tolist()):
        decision = clipper.decide(statistics, row)
        statistics = decision.statistics
        skipped += decision.skip
        assert decision.multipliers == tuple(expected[step]), step
        if not np.isnan(history[step, 0]):
            assert [statistics.ema, statistics.variance] == pytest.approx(history[step].tolist(), rel=1e-12)
    assert 0 < skipped < 60 and (expected == 0).any(1).sum() > 15


def test_norms_in_float32_are_judged_as_the_numbers_they_are():
    """Norms come in float32 from a device; 0.1 there is 0.10000000149, and the statistics are those of that number."""
    norms = torch.tensor([0.1, 0.3])
    found = AdaptiveClipper().decide_on_device(DeviceStatistics.of(NormStatistics(0.2, 0.01, 9), "cpu"), norms)
    expected = AdaptiveClipper().decide(NormStatistics(0.2, 0.01, 9), norms.tolist())
    assert found.read() == expected and expected.max_norm == 0.30000001192092896
    assert expected.statistics.ema == 0.99 * 0.2 + (1 - 0.99) * 0.30000001192092896


def test_the_norm_of_everything():
    parts = [torch.randn(3, 4), torch.randn(5).bfloat16(), torch.tensor(2.0)]
    whole = torch.cat([part.float().flatten() for part in parts])
    assert torch.allclose(global_norm(parts), whole.norm()) and global_norm(parts).dtype == torch.float32
    assert global_norm([]).item() == 0
    assert math.isnan(global_norm([*parts, torch.tensor(NAN)]).item())
    assert global_norm([torch.tensor(INF)]).item() == INF
