"""What a comparison could have seen: the smallest effect that a number of seeds detects."""

POWER, LEVEL = 0.8, 0.05


def power_of(effect: float, std_error: float, freedom: float, level: float = LEVEL) -> float:
    """The probability that a two-sided t test finds an effect: from the noncentral t distribution (Cohen 1988).

    Args:
        effect: the true difference, in the unit of the values.
        std_error: of the estimated difference; std / sqrt(n) for n paired seeds.
        freedom: degrees of freedom; n - 1 for n paired seeds.
        level: of the test.
    """
    ...


def smallest_effect(std_error: float, freedom: float, level: float = LEVEL, power: float = POWER) -> float:
    """The difference that a two-sided t test finds with probability ``power``, by bisection of ``power_of``.

    Args:
        std_error: of the estimated difference; 0 gives 0.
        freedom: degrees of freedom, more than 0.
        level: of the test; divide it by the number of tests for the strictest step of Holm's correction.
        power: how often the effect is to be found, between ``level`` and 1.
    """
    ...


def seeds_needed(effect: float, std: float, level: float = LEVEL, power: float = POWER, most: int = 1000) -> int | None:
    """How many paired seeds find an effect with probability ``power``; None if more than ``most``.

    Args:
        effect: the true difference.
        std: of the differences between runs of one seed.
        level: of the test.
        power: how often the effect is to be found.
        most: where the search ends.
    """
    ...
