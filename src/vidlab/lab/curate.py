"""The curation jobs: index a data set, encode it, make one of raw videos; those of texts are in ``captions``."""

import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from vidlab.assets import cache_folder
from vidlab.autoencoders.streaming import check_chunk
from vidlab.command_line import command, setting
from vidlab.curation.encode import Bench, ClipsToEncode, Encoders
from vidlab.curation.index_report import report_text
from vidlab.curation.workers import encode_all
from vidlab.data.module import ClipDataModule
from vidlab.data.names import shown
from vidlab.data.storage.index import ClipIndex
from vidlab.data.storage.latent_cache import CacheHeader, ClipCache
from vidlab.errors import UserError
from vidlab.files import terminal
from vidlab.lab.cache_key import cache_key, key_digest
from vidlab.lab.captions.stages import TEXT_STAGES
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.compose import resolve_accelerator
from vidlab.lab.curating.run import run_recipe
from vidlab.lab.published_sizes import take_published_sizes
from vidlab.precision import resolve_precision

STAGES = ("index", "encode", "curate", *TEXT_STAGES)
LEAST = {"processes": 1, "batch_size": 1, "clips_per_shard": 1, "world_size": 1, "sources_per_partition": 1}
PRECISIONS = ("32-true", "bf16-mixed")
# words of the command line that train.py does not know
OWN = (
    *("stage", "folder", "frames_at_once", "curation", "engine", "export", "retries", *LEAST),
    *("captioner", "against", "caption", "dsg", "endpoint", "pairs", "refiner"),
)


def run_curation(cfg: DictConfig) -> None:
    """Run the stage that ``cfg.stage`` names.

    Raises:
        UserError: no such stage, or a setting that cannot work.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    stage = cfg.stage or ("index" if cfg.curation is None else "curate")
    if stage not in STAGES:
        raise UserError(f"stage={stage}: choose one of {', '.join(STAGES)}.")
    for name, least in LEAST.items():
        if not isinstance(cfg[name], int) or cfg[name] < least:
            raise UserError(f"{name}={cfg[name]}: it must be a whole number of {least} or more.")
    if stage == "curate":
        print(terminal(run_recipe(cfg)))
        return
    if stage in TEXT_STAGES:
        print(terminal(TEXT_STAGES[stage](cfg)))
        return
    check_chunk(cfg.frames_at_once)
    take_published_sizes(cfg, words())
    print(terminal(run_index(cfg) if stage == "index" else run_encoding(cfg)))


def words() -> list[str]:
    """The words of this command line that train.py takes too."""
    from hydra.core.hydra_config import HydraConfig

    given = HydraConfig.get().overrides.task
    return [word for word in given if re.split("[.=@]", word.lstrip("+~"))[0] not in OWN]


def run_index(cfg: DictConfig) -> str:
    """Make the index of a data set where there is none, and tell what it holds."""
    data = build(cfg)
    index = ClipIndex.open(data.source.prepare())
    return "\n".join(
        [
            report_text(index, str(data.name), data.source.prepare()),
            f"  see the order and the buckets   {command('-m vidlab plan', *words())}",
            f"  encode it once                  {command('curate.py', 'stage=encode', *words())}",
            f"  train on it                     {command('train.py', *words())}",
        ]
    )


def build(cfg: DictConfig) -> ClipDataModule:
    """The DataModule of the configuration; encoded are the middle views unless ``data.views`` says otherwise.

    Raises:
        UserError: ``data.cache`` is set, or the data is of another kind.
    """
    if cfg.data.get("cache") is not None:
        raise UserError("data.cache is what stage=encode makes: give its place as folder=...")
    views = cfg.data.get("views")
    data = instantiate(cfg.data, "data", views=0 if views is None else views)
    if not isinstance(data, ClipDataModule):
        raise UserError(f"data={cfg.data.get('name')}: {type(data).__name__} holds no clips that could be encoded")
    return data


def run_encoding(cfg: DictConfig) -> str:
    """Encode every training clip; returns what to print."""
    accelerator = resolve_accelerator(cfg.trainer.accelerator)
    precision = resolve_precision(cfg.precision, accelerator)
    if precision not in PRECISIONS:
        raise UserError(f"precision={cfg.precision}: encoders compute in {' or '.join(PRECISIONS)}.")
    data, encoders = build(cfg), build_encoders(cfg, 0)
    text = instantiate(cfg.text_encoder, "text_encoder") if encoders.text is None else encoders.text
    key = cache_key(cfg, encoders.autoencoder, text, data, accelerator)
    views = data.view.views or 0
    header = CacheHeader(key, views, len(data.data.train), cfg.clips_per_shard)
    folder = Path(cfg.folder).expanduser() if cfg.folder else default_folder(str(data.name), key)
    folder = folder.absolute()
    if cfg.processes == 1 or accelerator == "cpu":
        own = Bench(to_encode(cfg, data), encoders, folder, header, cfg.batch_size, data.num_workers)
        done = encode_all(folder, header, lambda _: own, cfg.processes, start="fork")
    else:
        make = partial(build_bench, OmegaConf.to_yaml(cfg, resolve=True), folder, header)
        done = encode_all(folder, header, make, cfg.processes, start="spawn")
    return encoding_text(done.made, done.kept, ClipCache(folder), data, text.trainable)


def build_encoders(cfg: DictConfig, number: int) -> Encoders:
    """The frozen encoders of process ``number``, on its own GPU where there are several."""
    accelerator = resolve_accelerator(cfg.trainer.accelerator)
    device = torch.device("cpu")
    if accelerator != "cpu":
        device = torch.device("cuda", number % torch.cuda.device_count())
    autoencoder = instantiate(cfg.autoencoder, "autoencoder").requires_grad_(False).eval().to(device)
    text = instantiate(cfg.text_encoder, "text_encoder")
    bf16 = resolve_precision(cfg.precision, accelerator) == "bf16-mixed"
    learned = text.trainable
    return Encoders(autoencoder, None if learned else text.eval().to(device), device, bf16, cfg.frames_at_once)


def build_bench(settings: str, folder: Path, header: CacheHeader, number: int) -> Bench:
    """What worker ``number`` needs, from the configuration as YAML."""
    cfg = OmegaConf.create(settings)
    assert isinstance(cfg, DictConfig)
    data = build(cfg)
    return Bench(to_encode(cfg, data), build_encoders(cfg, number), folder, header, cfg.batch_size, data.num_workers)


def to_encode(cfg: DictConfig, data: ClipDataModule) -> ClipsToEncode:
    """The training clips in the shapes that ``world_size`` processes would train them in."""
    clips = data.data.train
    shapes = data.planned(cfg.world_size).shapes(clips)
    return ClipsToEncode(clips, data.view, shapes, data.seed, data.view.views or 0)


def default_folder(name: str, key: dict[str, Any]) -> Path:
    """Where a cache goes when no folder is given: its name changes with everything its content depends on."""
    return cache_folder() / "encoded" / f"{name}-{key_digest(key)}"


def encoding_text(made: int, kept: int, cache: ClipCache, data: ClipDataModule, learned: bool) -> str:
    """What was encoded, and what to type next."""
    named = zip(*(cache.table.column(name).to_pylist() for name in ("key", "error")), strict=True)
    errors = [shown(f"{key}: {error}") for key, error in named if error is not None]
    size = sum(path.stat().st_size for path in cache.folder.glob("[0-9]*.tar"))
    views = cache.header.views
    drawn = f"{views} random views of each" if views else "the middle view of each (data.views=4 draws four)"
    text = "captions stay captions: the text encoder is learned" if learned else "latents and text features"
    lines = [
        f"{cache.folder}\n  {cache.header.clips} clips of data={data.name}, {drawn}; {size / 1e6:.1f} MB",
        f"  {made} shards written, {kept} kept from before; {text}",
        "  held-out clips are not cached: validation decodes and encodes them",
    ]
    lines += [f"  {len(errors)} cannot be read, first: {errors[0]}"] if errors else []
    lines.append(f"  train on it   {command('train.py', *words(), setting('data.cache', cache.folder))}")
    return "\n".join(lines)
