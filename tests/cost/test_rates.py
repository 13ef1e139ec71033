import pytest
import torch

from vidlab.callbacks.cost.utilization import utilization
from vidlab.callbacks.throughput import ShapeReport
from vidlab.cost.rates import DeviceRates, attention_rate, matmul_rate, vendor_rate


def test_the_measured_rates_are_those_of_products():
    assert 1e8 < matmul_rate(torch.float32, "cpu", size=128, seconds=0.05) < 1e14
    assert 1e7 < attention_rate(torch.float32, "cpu", tokens=64, seconds=0.05) < 1e14


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.5), ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA A10", 125), ("NVIDIA L4", 121), ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2), ("", None), ("Quadro P4000", None),
    ],
)  # fmt: skip
def test_what_the_vendor_states(name, tflops):
    expected = None if tflops is None else tflops * 1e12
    assert vendor_rate(name, torch.bfloat16) == expected
    assert vendor_rate(name, torch.float32) is None


def test_utilization_by_hand():
    """100 FLOPs, 40 of attention, in 10 s on two devices that do 10, of attention 4, by the vendor 50 a second."""
    rates = DeviceRates(matmul=5.0, attention=2.0, vendor=25.0) * 2
    found = utilization(ShapeReport(batches=4, seconds=10.0, flops=100, attention_flops=40), rates)
    assert (found.matmul, found.vendor) == (1.0, 0.2)
    assert found.bound == pytest.approx((60 / 10 + 40 / 4) / 10)
    assert str(found).endswith("160% with attention at its own, 20% of the vendor's")
    alone = utilization(ShapeReport(4, 10.0, 100, 40), DeviceRates(20.0))
    assert (alone.matmul, alone.bound, alone.vendor) == (0.5, 0.5, None)
