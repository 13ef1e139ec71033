"""``stage=pairs`` and ``stage=refiner``: short prompts with their expansions, and a language model that learns them."""

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from omegaconf import DictConfig

from vidlab.chat.client import ChatClient, Refused
from vidlab.chat.journal import Journal
from vidlab.chat.messages import ChatRequest
from vidlab.command_line import command, prompt, setting
from vidlab.curation.captions.cleaning import cleaned
from vidlab.data.moving_shapes.short_prompts import short_prompt
from vidlab.data.storage.index import ClipIndex
from vidlab.data.tables.captions import caption_lines, decoded, unique
from vidlab.errors import DataError, UserError
from vidlab.lab.captions.caption import open_data
from vidlab.lab.captions.refiners import REFINERS
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.cli.progress import bar
from vidlab.lab.compose import resolve_accelerator
from vidlab.randomness import seed_of
from vidlab.text.refiner.fine_tuning import FineTuning
from vidlab.text.refiner.instruction import INSTRUCTION, check_instruction, instructed
from vidlab.text.refiner.language_model import load_language_model
from vidlab.text.refiner.pairs import PAIRS, PromptPair, read_pairs, write_pairs


def run_pairs(cfg: DictConfig) -> str:
    """Write pairs: of ``cfg.pairs.prompts`` by the server, or of the factors and captions of rendered clips."""
    folder = Path(cfg.folder).expanduser() if cfg.folder else REFINERS
    folder.mkdir(parents=True, exist_ok=True)
    if cfg.pairs.prompts is None:
        pairs, told = of_clips(cfg), ""
    else:
        pairs, told = of_prompts(cfg, folder)
    if not pairs:
        raise DataError("no pair could be made.")
    write_pairs(folder / PAIRS, pairs)
    next_command = command("curate.py", "stage=refiner", setting("pairs.path", folder / PAIRS))
    return f'{folder / PAIRS}\n  {len(pairs)} pairs{told}, first "{pairs[0].prompt}" -> "{pairs[0].refined}"\n' + (
        f"  fine-tune on them   {next_command}"
    )


def of_clips(cfg: DictConfig) -> list[PromptPair]:
    """Short prompts of the training clips, whose factors are known, with the captions that the data set writes.

    Raises:
        UserError: clips without factors, or a count that is none.
    """
    count = cfg.pairs.count
    if count is not None and (not isinstance(count, int) or count < 1):
        raise UserError(f"pairs.count={count}: it must be a whole number of 1 or more; null takes all clips.")
    data = open_data(cfg)
    index = ClipIndex.open(data.source.prepare()).select("train")
    pairs = []
    for place in range(len(index) if count is None else min(count, len(index))):
        row = index.row(place)
        if row.factors is None:
            raise UserError(
                f"data={data.name}: only rendered clips tell what a short prompt would say. Give short prompts in a "
                "text file, pairs.prompts=FILE, and a server that expands them, endpoint.url=... endpoint.model=..."
            )
        short = short_prompt(Random(seed_of(cfg.seed, "short prompt", row.key)), row.factors)
        pairs.append(PromptPair(short.text, row.captions[0], str(data.name)))
    return pairs


def of_prompts(cfg: DictConfig, folder: Path) -> tuple[list[PromptPair], str]:
    """Expansions of the lines of a file by a server, with the published instruction; and what they took."""
    file = Path(cfg.pairs.prompts).expanduser()
    if not file.is_file():
        raise UserError(f"pairs.prompts={cfg.pairs.prompts}: there is no such file of one prompt a line.")
    prompts = unique(caption_lines(decoded(file.read_bytes(), f"pairs.prompts={file}")))
    endpoint = instantiate(cfg.endpoint, "endpoint")
    instruction = cfg.pairs.instruction or INSTRUCTION
    check_instruction(instruction, "pairs.instruction")
    with Journal(folder / "pairs.answers.jsonl") as journal, bar("expanding prompts", len(prompts)) as advance:
        client = ChatClient(endpoint, journal)

        def requests() -> Iterator[ChatRequest]:
            for text in prompts:
                yield ChatRequest(instructed(text, instruction), (), text)

        pairs, refused = [], 0
        for request, answer in client.answers(requests()):
            advance(1)
            text = "" if isinstance(answer, Refused) or not answer.finished else cleaned(answer.text)
            refused += not text
            pairs += [PromptPair(request.about, text, endpoint.source)] if text else []
    left_out = f", {refused} refused, empty or cut off and left out" if refused else ""
    return pairs, f" by {endpoint.source} ({client.spent} in this run{left_out})"


def run_refiner(cfg: DictConfig) -> str:
    """Fine-tune a language model on pairs; returns what to print."""
    tuning = instantiate(cfg.refiner.tuning, "refiner.tuning")
    assert isinstance(tuning, FineTuning)
    pairs = read_pairs(cfg.pairs.path) if cfg.pairs.path else of_clips(cfg)
    steps = tuning.steps(len(pairs))
    folder = Path(cfg.folder).expanduser() if cfg.folder else REFINERS / time.strftime("%Y-%m-%d_%H-%M-%S")
    if folder.exists():
        raise UserError(f"folder={folder} exists. Give another, or delete it.")
    language = load_language_model(cfg.refiner.model, "refiner.model")
    device = "cpu" if resolve_accelerator(cfg.trainer.accelerator) == "cpu" else "cuda"
    language.model.to(device)
    with bar("fine-tuning the refiner", steps) as advance:
        losses = tuning.run(language, pairs, folder, lambda *_: advance(1))
    use = command("generate.py", "checkpoint=last", "refine=true", setting("refiner", folder), prompt(pairs[0].prompt))
    return (
        f"{folder}\n  {cfg.refiner.model}, LoRA of rank {tuning.rank}, {len(pairs)} pairs, {len(losses)} steps: "
        f"{losses[0]:.3f} nats per token at first, {losses[-1]:.3f} at last\n  use it   {use}"
    )
