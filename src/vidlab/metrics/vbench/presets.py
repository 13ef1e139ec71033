"""How VBench dimensions are combined into headline scores: published ranges, weights and formulas, as data.

Dimension scores are in [0, 1]. A preset maps each to ``(score - least) / (most - least)`` over its published
range, takes weighted means of groups of dimensions, and the weighted mean of the groups as the total.
"""

from collections.abc import Mapping
from dataclasses import dataclass

T2V_QUALITY = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
T2V_SEMANTIC = (
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "scene",
    "appearance_style",
    "temporal_style",
    "overall_consistency",
)
I2V = ("i2v_subject", "i2v_background", "camera_motion")
DIMENSIONS = (*T2V_QUALITY, *T2V_SEMANTIC, *I2V)
"""Every dimension of VBench and VBench-I2V."""


@dataclass(frozen=True)
class Range:
    """The empirical least and greatest score of a dimension, in [0, 1]."""

    least: float = 0.0
    most: float = 1.0


@dataclass(frozen=True)
class Group:
    """A weighted mean of dimensions.

    Args:
        name: "quality", "semantic", "i2v" or "mean".
        weights: dimension to weight.
        weight: of the group in the total.
    """

    name: str
    weights: Mapping[str, float]
    weight: float = 1.0


@dataclass(frozen=True)
class Preset:
    """One published way of combining dimensions.

    Args:
        name: what ``--preset`` takes.
        source: where the formula is published.
        groups: the parts of the total.
        ranges: of the dimensions that are normalized; the others are taken as they are.
    """

    name: str
    source: str
    groups: tuple[Group, ...]
    ranges: Mapping[str, Range]

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Every dimension the preset needs, in the order of its groups."""
        return tuple(name for group in self.groups for name in group.weights)


# VBench, scripts/constant.py (NORMALIZE_DIC); dimensions not listed there or from 0 to 1 are left out.
RANGES = {
    "subject_consistency": Range(0.1462, 1.0),
    "background_consistency": Range(0.2615, 1.0),
    "temporal_flickering": Range(0.6293, 1.0),
    "motion_smoothness": Range(0.7060, 0.9975),
    "scene": Range(0.0, 0.8222),
    "appearance_style": Range(0.0009, 0.2855),
    "temporal_style": Range(0.0, 0.3640),
    "overall_consistency": Range(0.0, 0.3640),
}
# VBench-I2V, scripts/constant.py.
I2V_RANGES = {**RANGES, "i2v_subject": Range(0.1462, 1.0), "i2v_background": Range(0.2615, 1.0)}


def _weighted(names: tuple[str, ...], **other: float) -> dict[str, float]:
    """Weight 1 for every dimension but those given."""
    return {name: other.get(name, 1.0) for name in names}


_QUALITY = _weighted(T2V_QUALITY, dynamic_degree=0.5)
_QUALITY_WITHOUT_FLICKER = {name: weight for name, weight in _QUALITY.items() if name != "temporal_flickering"}
_M4V = tuple(name for name in (*T2V_QUALITY, "overall_consistency") if name != "dynamic_degree")

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "vbench_t2v",
            "VBench (Huang et al., 2024), scripts/cal_final_score.py",
            (Group("quality", _QUALITY, 4.0), Group("semantic", _weighted(T2V_SEMANTIC))),
            RANGES,
        ),
        Preset(
            "vbench_i2v_official",
            "VBench-I2V, the leaderboard's formula since 2024-12-31",
            (Group("quality", _QUALITY_WITHOUT_FLICKER), Group("i2v", _weighted(I2V, camera_motion=0.1))),
            I2V_RANGES,
        ),
        Preset(
            "vbench_i2v_stiv_table14",
            "inferred from the numbers of STIV, Table 14: flicker counts, camera motion does not",
            (Group("quality", _QUALITY), Group("i2v", _weighted(I2V[:2]))),
            I2V_RANGES,
        ),
        Preset(
            "m4v_ablation",
            "M4V, appendix C.1: plain mean of seven dimensions, not normalized",
            (Group("mean", _weighted(_M4V)),),
            {},
        ),
    )
}
"""The presets by name."""
