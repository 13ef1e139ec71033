"""LoRA fine-tuning of a causal language model into a prompt refiner."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vidlab.errors import UserError
from vidlab.files import folder_made_aside
from vidlab.precision import autocast
from vidlab.randomness import generator, seed_of
from vidlab.text.refiner.instruction import check_instruction, instructed
from vidlab.text.refiner.language_model import LanguageModel, with_lora, write_record
from vidlab.text.refiner.pairs import PAIRS, PromptPair, digest_of, write_pairs

IGNORED = -100  # targets that cross entropy leaves out
LEAST = {"rank": 1, "alpha": 1, "epochs": 1, "batch_size": 1, "at_once": 1, "max_tokens": 8}


@dataclass(frozen=True)
class FineTuning:
    """How a language model is taught to expand prompts (Open-Sora Plan v1.3, arXiv:2412.00131, section 3.3).

    The published recipe is LoRA of rank 64, one epoch, learning rate 1.5e-4 and batches of 32. The paper does not say
    alpha, the adapted matrices, the warm-up, nor whether the instruction stands before each prompt in training.

    Args:
        rank: of the LoRA matrices.
        alpha: the update is scaled by alpha / rank.
        targets: names of the adapted modules, or ``all-linear``: all but the output layer.
        epochs: passes over the pairs.
        lr: of AdamW, without weight decay.
        warmup: share of the steps over which the rate rises from 0.
        batch_size: pairs of one optimizer step.
        at_once: pairs that pass the model together; the gradient is that of the whole batch.
        max_tokens: longer pairs are refused.
        instruction: what stands around each prompt, with ``{prompt}`` in it; None is the prompt alone.
        chat: pairs have the form of the model's chat template, if it has one; without it they are half as long: a line
            with the prompt and a line with its expansion.
        seed: of the order of the pairs and of the LoRA's first weights.
        precision: ``auto``, ``32-true`` or ``bf16-mixed``.

    Raises:
        UserError: a number out of range.
    """

    rank: int = 64
    alpha: float = 64
    targets: str | Sequence[str] = "all-linear"
    epochs: int = 1
    lr: float = 1.5e-4
    warmup: float = 0.05
    batch_size: int = 32
    at_once: int = 8
    max_tokens: int = 512
    instruction: str | None = None
    chat: bool = True
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"refiner.tuning.{name}={getattr(self, name)}: it must be {least} or more.")
        if not 0 < self.lr < 1 or not 0 <= self.warmup < 1:
            raise UserError(
                f"refiner.tuning.lr={self.lr}, refiner.tuning.warmup={self.warmup}: the rate must lie between 0 and 1, "
                "the share from 0 to below 1."
            )
        if self.instruction is not None:
            check_instruction(self.instruction, "refiner.tuning.instruction")

    def steps(self, pairs: int) -> int:
        """Optimizer steps over so many pairs.

        Raises:
            UserError: too few for a batch.
        """
        if pairs < self.batch_size:
            raise UserError(
                f"refiner.tuning.batch_size={self.batch_size}: there are {pairs} pairs, not enough for one batch."
            )
        return self.epochs * (pairs // self.batch_size)

    def run(
        self,
        language: LanguageModel,
        pairs: Sequence[PromptPair],
        folder: Path,
        told: Callable[[int, int, float], None] | None = None,
    ) -> list[float]:
        """Fine-tune and write the adapter with its record and its pairs to ``folder``; returns the loss of each step.

        The loss is the mean cross entropy over the tokens of the expansions and their ends, in nats.

        Args:
            language: a model without an adapter, on the device to train on.
            pairs: prompts and what they are to become.
            folder: appears when it is complete.
            told: called after each step with (step, steps, loss).

        Raises:
            UserError: too few pairs for a batch, one that is too long, targets that the model has not, or a model that
                has an adapter.
        """
        if language.adapted:
            raise UserError(
                f"refiner.model={language.source} is an adapter, and another one on top of it would be written without "
                f"it. Fine-tune its model: refiner.model={language.base}."
            )
        self.steps(len(pairs))  # refuses too few
        examples = [self._example(language, pair) for pair in pairs]
        model = self._adapted(language.model)
        losses = self._train(model, examples, language.end, told)
        with folder_made_aside(folder) as made:
            # the embeddings are those of the model; peft would ask the hub whether they are
            model.save_pretrained(str(made), safe_serialization=True, save_embedding_layers=False)
            settings = asdict(self) | {"targets": self.targets if isinstance(self.targets, str) else [*self.targets]}
            record = {"base": language.base, "pairs": len(pairs), "pairs_digest": digest_of(pairs)}
            record |= {
                "settings": settings,
                "instruction": self.instruction,
                "chat": self.chat,
                "last_loss": losses[-1],
            }
            write_record(made, record)
            write_pairs(made / PAIRS, pairs)
        return losses

    def _example(self, language: LanguageModel, pair: PromptPair) -> tuple[list[int], list[int]]:
        asked = language.conversation(instructed(pair.prompt, self.instruction), self.chat)
        answer = language.answer(pair.refined)
        if len(asked) + len(answer) > self.max_tokens:
            raise UserError(
                f'refiner.tuning.max_tokens={self.max_tokens}: the pair of "{pair.prompt[:40]}" has '
                f"{len(asked) + len(answer)} tokens. Raise it or shorten the pair."
            )
        return asked, answer

    def _adapted(self, model: Any) -> Any:
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        with torch.random.fork_rng():  # peft draws from the global generator
            torch.manual_seed(seed_of(self.seed, "refiner", "lora"))
            try:
                return with_lora(model, r=self.rank, lora_alpha=self.alpha, target_modules=targets).train()
            except ValueError as error:
                raise UserError(f"refiner.tuning.targets={targets}: {error}") from error

    def _train(
        self,
        model: Any,
        examples: Sequence[tuple[list[int], list[int]]],
        padding: int,
        told: Callable[[int, int, float], None] | None,
    ) -> list[float]:
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=self.lr, weight_decay=0.0)
        steps = self.steps(len(examples))
        rising = max(1, round(self.warmup * steps))
        losses: list[float] = []
        for step, batch in enumerate(self._batches(examples)):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * min(1.0, (step + 1) / rising)
            losses.append(self._step(model, batch, padding))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if told is not None:
                told(step + 1, steps, losses[-1])
        return losses

    def _batches(
        self, examples: Sequence[tuple[list[int], list[int]]]
    ) -> Iterator[Sequence[tuple[list[int], list[int]]]]:
        """Whole batches of each epoch in an order of its own; the last pairs that fill none are left out."""
        for epoch in range(self.epochs):
            order = torch.randperm(len(examples), generator=generator(self.seed, "refiner", epoch)).tolist()
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                yield [examples[place] for place in order[start : start + self.batch_size]]

    def _step(self, model: Any, batch: Sequence[tuple[list[int], list[int]]], padding: int) -> float:
        """Gradients of the mean loss per token of the whole batch, summed over its parts."""
        tokens = sum(len(answer) for _, answer in batch)
        device = next(model.parameters()).device
        total = 0.0
        ordered = sorted(batch, key=lambda example: len(example[0]) + len(example[1]))  # less padding
        for start in range(0, len(ordered), self.at_once):
            part = ordered[start : start + self.at_once]
            with autocast(device.type, self.precision):
                loss = answer_loss(model, part, padding) / tokens
            loss.backward()
            total += loss.item()
        return total


def answer_loss(model: Any, part: Sequence[tuple[list[int], list[int]]], padding: int) -> Tensor:
    """Summed cross entropy of the answers' tokens, in nats.

    Args:
        model: a causal language model of transformers.
        part: (ids of what is asked, ids of the answer) of each example; B of them.
        padding: any token, which is masked.
    """
    device = next(model.parameters()).device
    longest = max(len(asked) + len(answer) for asked, answer in part)
    kept = max(len(answer) for _, answer in part) + 1
    ids = torch.full((len(part), longest), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    targets = torch.full_like(ids, IGNORED)
    for row, (asked, answer) in enumerate(part):  # padded on the left: all answers end in the last column
        ids[row, -len(asked) - len(answer) :] = torch.tensor([*asked, *answer])
        mask[row, -len(asked) - len(answer) :] = 1
        targets[row, -len(answer) :] = torch.tensor(answer)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    # the head is the widest layer: it is computed where an answer may be
    output = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions.to(device),
        use_cache=False,
        logits_to_keep=kept,
    )
    logits = output.logits[:, -kept:-1].float()  # (B, kept - 1, V)
    wanted = targets[:, longest - kept + 1 :].to(device)  # (B, kept - 1)
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum")
