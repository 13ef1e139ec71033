"""What a language model is asked for when it expands a prompt (Open-Sora Plan, arXiv:2412.00131, section 3.3)."""

from vidlab.errors import UserError

PLACE = "{prompt}"
INSTRUCTION = (
    'rewrite the prompt: "{prompt}" to contain subject description action, scene description. (Optional: camera '
    "language, light and shadow, atmosphere) and conceive some additional actions to make the prompt more dynamic, "
    "making sure it's a fluent sentence."
)
"""The published instruction, word for word; ``{prompt}`` stands for the short prompt."""


def check_instruction(instruction: str, key: str) -> None:
    """Refuse an instruction without a place for the prompt: every prompt would be asked the same.

    Raises:
        UserError: naming ``key``, the setting that holds it.
    """
    if PLACE not in instruction:
        raise UserError(f"{key} has no {PLACE} in it, where the short prompt stands.")


def instructed(prompt: str, instruction: str | None) -> str:
    """What the model is told: the instruction with the prompt in it, or with None the prompt alone."""
    return prompt if instruction is None else instruction.replace(PLACE, prompt)
