"""Whose step it is in adversarial training: the generator's or the discriminator's, counted in batches."""

from dataclasses import dataclass

from vidlab.errors import UserError

GENERATOR, DISCRIMINATOR = 0, 1


@dataclass(frozen=True)
class Turns:
    """Every step is the generator's until ``start``; from then on the two take turns.

    Args:
        adversary: whether there is a discriminator at all.
        start: the step from which there is one (``task.discriminator_start``).
        accumulate: batches to a turn and to an optimizer step (``task.accumulate``).

    Raises:
        UserError: a number out of range.
    """

    adversary: bool
    start: int = 0
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name, value, least in (("accumulate", self.accumulate, 1), ("discriminator_start", self.start, 0)):
            if value < least:
                raise UserError(f"task.{name}={value} must be {least} or more.")

    def adversary_present(self, step: int) -> bool:
        """Whether there is an adversary at a step."""
        return self.adversary and step >= self.start

    def turn(self, step: int) -> int:
        """Whose turn a step is: 0 the generator's, 1 the discriminator's."""
        turns = step // self.accumulate
        return turns % 2 if self.adversary_present(turns * self.accumulate) else GENERATOR

    def completes(self, step: int) -> bool:
        """Whether an optimizer step follows this batch."""
        return (step + 1) % self.accumulate == 0

    def unfinished(self, step: int) -> bool:
        """Whether gradients wait for more batches before this step."""
        return step % self.accumulate != 0
