"""The prompt refiner in use: from what a person types to what the video model was trained on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vidlab.errors import UserError
from vidlab.text.refiner.instruction import INSTRUCTION, instructed
from vidlab.text.refiner.language_model import LanguageModel, load_language_model

log = logging.getLogger(__name__)
QUOTES = "\"'“”‘’`"  # noqa: RUF001  what a model puts around its answer


@dataclass(frozen=True)
class RefinedPrompt:
    """A prompt as it was typed, what it became, and by which refiner."""

    original: str
    refined: str
    refiner: str


@dataclass(frozen=True)
class PromptRefiner:
    """Expands prompts with a language model (Open-Sora Plan v1.3, arXiv:2412.00131, section 3.3).

    Decoding is greedy, so a prompt always becomes the same text. A refiner that was fine-tuned here is told what it was
    told in training; any other model gets the published instruction.

    Args:
        language: the model.
        max_new_tokens: of the longest expansion; a longer one is cut, with a warning.
        batch_size: prompts expanded at once; only those of one length are, so that none is padded.
    """

    language: LanguageModel
    max_new_tokens: int = 256
    batch_size: int = 16

    @classmethod
    def load(cls, reference: str, key: str = "refiner", max_new_tokens: int = 256) -> "PromptRefiner":
        """The refiner behind a folder of a causal language model or of an adapter, a hub id, or ``asset:smollm2``.

        Raises:
            UserError: it is not there or cannot be read.
        """
        return cls(load_language_model(reference, key), max_new_tokens)

    @property
    def instruction(self) -> str | None:
        """What stands around each prompt; None is nothing."""
        record = self.language.record
        found: str | None = record.get("instruction", INSTRUCTION)
        return found

    def to(self, device: torch.device | str) -> "PromptRefiner":
        """Move the model; returns the refiner."""
        self.language.model.to(device)
        return self

    def refine(self, prompts: Sequence[str]) -> list[RefinedPrompt]:
        """Each prompt with its expansion, in order; equal prompts are expanded once.

        Raises:
            UserError: an empty prompt, or one of which the model makes nothing.
        """
        if any(not prompt.strip() for prompt in prompts):
            raise UserError("refine=true: an empty prompt cannot be expanded.")
        distinct = list(dict.fromkeys(prompts))
        chat = bool(self.language.record.get("chat", True))
        asked = {prompt: self.language.conversation(instructed(prompt, self.instruction), chat) for prompt in distinct}
        waiting = sorted(distinct, key=lambda prompt: len(asked[prompt]))
        found: dict[str, str] = {}
        while waiting:
            length = len(asked[waiting[0]])
            batch = [prompt for prompt in waiting[: self.batch_size] if len(asked[prompt]) == length]
            waiting = waiting[len(batch) :]
            found |= dict(zip(batch, self._expanded([asked[prompt] for prompt in batch]), strict=True))
        for prompt, text in found.items():
            if not text:
                raise UserError(f'refiner={self.language.source}: it makes nothing of the prompt "{prompt[:40]}".')
        return [RefinedPrompt(prompt, found[prompt], self.language.source) for prompt in prompts]

    @torch.inference_mode()
    def _expanded(self, asked: Sequence[Sequence[int]]) -> list[str]:
        """The answers to conversations of one length."""
        model: Any = self.language.model
        ids = torch.tensor(asked, device=next(model.parameters()).device)
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.language.end,
            pad_token_id=self.language.end,
        )
        return [self._text(row[ids.shape[1] :].tolist()) for row in made]

    def _text(self, ids: list[int]) -> str:
        if self.language.end in ids:
            ids = ids[: ids.index(self.language.end)]
        else:
            log.warning("refiner: an expansion was cut at max_new_tokens=%d", self.max_new_tokens)
        text = " ".join(self.language.tokenizer.decode(ids, skip_special_tokens=True).split())
        return text[1:-1].strip() if len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES else text
