"""Model FLOPs utilization (MFU): the FLOP/s of a training over what its device can do."""

from dataclasses import dataclass

from vidlab.callbacks.throughput import ShapeReport
from vidlab.cost.rates import DeviceRates


@dataclass(frozen=True)
class Utilization:
    """Shares of rates that a device can reach: model FLOPs utilization (MFU) against three yardsticks.

    Args:
        matmul: of the measured rate of large matrix products.
        bound: of the measured rates of matrix products and attention, each for its part of the work: 1 is a step in
            which nothing but products takes time.
        vendor: of the rate that the vendor states; None where it is not known.
    """

    matmul: float
    bound: float
    vendor: float | None

    def __str__(self) -> str:
        told = "" if self.vendor is None else f", {self.vendor:.0%} of the vendor's"
        return f"{self.matmul:.0%} of the matrix product rate here, {self.bound:.0%} with attention at its own{told}"


def utilization(report: ShapeReport, rates: DeviceRates) -> Utilization:
    """Of the batches of one shape.

    Args:
        report: with a time above 0.
        rates: of all devices together.
    """
    reached = report.flops / report.seconds
    return Utilization(
        matmul=reached / rates.matmul,
        bound=rates.shortest(report.flops, report.attention_flops) / report.seconds,
        vendor=None if rates.vendor is None else reached / rates.vendor,
    )
