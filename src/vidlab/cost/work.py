"""What a training has computed so far."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Work of all processes together.

    Args:
        steps: optimizer steps.
        samples: clips, each as often as it was trained on.
        tokens: that the denoiser processed.
        flops: of its matrix products, forward and backward.
        seconds: of training on the clock, waiting for data included; validation is left out.
    """

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.steps + other.steps,
            self.samples + other.samples,
            self.tokens + other.tokens,
            self.flops + other.flops,
            self.seconds + other.seconds,
        )
