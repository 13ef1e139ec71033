from dataclasses import replace

from vidlab.metrics.series import Series
from vidlab.sampling.gaussian import GaussianSampler
from vidlab.sampling.guidance import ClassifierFreeGuidance, Interval, NoGuidance
from vidlab.sampling.solvers import Euler, Heun

PLAIN = Series(64, GaussianSampler(Euler(), 32), ClassifierFreeGuidance(4.0), {"seed": 0, "reference": None})


def test_whatever_changes_the_videos_is_another_series():
    others = (
        replace(PLAIN, num_videos=16),
        replace(PLAIN, sampler=GaussianSampler(Euler(), 16)),
        replace(PLAIN, sampler=GaussianSampler(Heun(), 32)),
        replace(PLAIN, sampler=GaussianSampler(Euler(), 32, shift=3.0)),
        replace(PLAIN, guidance=ClassifierFreeGuidance(5.0)),
        replace(PLAIN, guidance=NoGuidance()),
        replace(PLAIN, guidance=Interval(ClassifierFreeGuidance(4.0), 0.1, 0.9)),
        replace(PLAIN, others={"seed": 1}),
    )
    assert len({one.name for one in (PLAIN, *others)}) == 1 + len(others)
    assert PLAIN.name.startswith("N64-Euler-32-ClassifierFreeGuidance-4-")
    again = Series(64, GaussianSampler(Euler(), 32), ClassifierFreeGuidance(4.0), {"seed": 0})
    assert again.name == PLAIN.name, "another object of the same settings, and nothing for what is not set"
    assert "num_videos=64" in PLAIN.text and "seed=0" in PLAIN.text and " at 0x" not in PLAIN.text
