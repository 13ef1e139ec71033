"""What M4V (arXiv 2506.10915) reports its models to compute: table 6, as a formula."""

from dataclasses import dataclass

DUAL, SINGLE = 8, 16  # blocks of the published model

# TFLOPs of a block's attention or mixer, fitted to the table, for the last of 31 latent frames at 768 x 1280.
ATTENTION = 2.31  # of a block that keeps attention
REPLACED = 1.422  # of a dual-stream block that does not; what replaces it is not told
MAMBA = 0.51
TEMPORAL = 0.18


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        name: as printed.
        reported: TFLOPs as printed.
        formula: TFLOPs by the formula.
    """

    name: str
    reported: float
    formula: float


def hybrid(dual_depth: int) -> float:
    """F(L) = 2.31 L + 1.422 (8 - L) + 16 (0.51 + 0.18) TFLOPs, L dual-stream blocks having attention."""
    return ATTENTION * dual_depth + REPLACED * (DUAL - dual_depth) + SINGLE * (MAMBA + TEMPORAL)


def table_6() -> tuple[Row, ...]:
    """The rows that the formula accounts for, 241 frames.

    "Pure Mamba" has its eight dual-stream blocks by this count. "Parallel" is given as 82.03: attention in all blocks
    and, besides, what pure Mamba computes would be 82.08.
    """
    return (
        Row("Full attention", 55.44, ATTENTION * (DUAL + SINGLE)),
        Row("Parallel", 82.03, ATTENTION * (DUAL + SINGLE) + ATTENTION * DUAL + SINGLE * MAMBA),
        Row("Pure Mamba", 26.64, ATTENTION * DUAL + SINGLE * MAMBA),
        Row("Mamba and temporal branch", 29.52, hybrid(DUAL)),
    )
