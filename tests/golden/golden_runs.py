"""Short trainings whose losses are on record, so that a change that should change no number can show it.

``python tests/golden/golden_runs.py FILE [--losses]`` writes everything in full precision, hashes of videos included:
made before and after a change on one machine, two such files are equal byte for byte. ``losses.json`` beside this file
holds the losses alone, which ``test_golden.py`` compares within a tolerance, since the last bits differ between
processors.
"""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, open_dict

from vidlab.clip import ClipBatch
from vidlab.lab.compose import build_data, build_module, build_trainer
from vidlab.lab.curate import run_curation
from vidlab.lab.runs import run_folder  # noqa: F401  registers its resolver
from vidlab.randomness import KeyedRNG
from vidlab.training.optimization.optimizers import trainable_parameters

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # hydra finds golden_clips there

CONF = HERE.parents[1] / "conf"
STEPS = 20
OPTIMIZERS = ("adamw", "muon")
TINY = (
    "model.backbone.width=48", "model.backbone.heads=2", "model.backbone.depth=4", "text_encoder.width=16",
    "text_encoder.heads=2", "sampler.steps=2", "precision=32-true", "data.frames=8", "data.height=16", "data.width=16",
)  # fmt: skip
# conditions that bring another text encoder, with what that one has in place of heads
CLASSES = {"class": ("text_encoder.classes=[a red square, a dog]",)}
SHAPES = (
    "trainer=cpu", "precision=32-true", "logger=none", f"trainer.max_steps={STEPS}", "+trainer.limit_val_batches=0",
    "data.num_workers=0", "data.batch_size=4", "data.source.train_clips=64", "data.source.val_clips=8",
)  # fmt: skip
MODEL = ("model.backbone.width=48", "model.backbone.heads=2", "model.backbone.depth=1")
BUCKETS = (
    "data.bucketing.max_tokens=512", "data.bucketing.stride=8", "data.bucketing.temporal_stride=4",
    "data.bucketing.first_frame_alone=true", "data.frames=9", "data.height=16", "data.width=16", "data.val_clips=3",
    "autoencoder=haar_frames", "model.token=[1,4,4]",
)  # fmt: skip
# what was the default when the runs below were recorded
RECORDED_WITH = ("objective=flow_matching_x0_low_noise", "lr_schedule=cosine")
# runs through the DataModule and the Trainer, each with both optimizers
TRAINER_RUNS: dict[str, tuple[str, ...]] = {
    "default": (*MODEL, *RECORDED_WITH),
    "bucketed": (*MODEL, *RECORDED_WITH, *BUCKETS),
    "joint_images": (*MODEL, *RECORDED_WITH, *BUCKETS, "data.bucketing.image_every=3"),
    "weighted": (*MODEL, *RECORDED_WITH, *BUCKETS, "data.bucketing.weights={web: 2.0, film: 0.5}"),
    "accumulated": (*MODEL, *RECORDED_WITH, "trainer.accumulate_grad_batches=2", "trainer.max_steps=10"),
    "autoencoder": (
        "task=autoencoder", "task.perceptual=null", "task.discriminator_start=4", "task.discriminator.width=8",
        "data.height=32", "data.width=32", "autoencoder.width=8", "autoencoder.start=random",
    ),
}  # fmt: skip


def choices(group: str) -> list[str]:
    """The choices of a group, published sizes left out."""
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))


UNETS = ("harivo", "harivo_image")  # slow at any size: with one objective and the caption alone
MODELS, OBJECTIVES = choices("model"), choices("objective")
CONDITIONINGS = [one for one in choices("conditioning") if one != "structure"]  # that one needs a trained parent
# of which every combination is run; others differ from one of these in a small part, and are run once
CROSSED_OBJECTIVES = ("epsilon", "flow_matching", "flow_matching_x0_low_noise", "v_prediction")
CROSSED_CONDITIONINGS = (
    "frame_interpolation", "frame_replacement", "masked_video", "masked_video_curriculum", "none",
)  # fmt: skip


def composed(program: str, *words: str, clips: Path | None = None) -> DictConfig:
    """A configuration as the command line gives it, without the callbacks that write files.

    ``clips`` is where clips of several shapes are kept, which then take the place of the rendered ones.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(program, ["hydra.mode=RUN", *words], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.callbacks = {}
        if clips is not None:
            cfg.data.source = {"_target_": "golden_clips.Mixed", "folder": str(clips)}
    return cfg


def batches() -> list[ClipBatch]:
    """One batch of two clips of random pixels for each step."""
    made = []
    for number in range(STEPS):
        keys, epochs = ("a", "b"), (number, number)
        pixels = KeyedRNG(1, keys, epochs).uniform("pixels", (3, 8, 16, 16)) * 2 - 1
        made.append(ClipBatch(pixels, ("a red square", "a dog"), keys, epochs, number, (8.0, 8.0)))
    return made


def combinations() -> Iterator[tuple[str, str, str]]:
    """Every model, objective and conditioning; variants of the last two with one model."""
    crossed = [name for name in MODELS if name not in UNETS]
    yield from itertools.product(crossed, CROSSED_OBJECTIVES, CROSSED_CONDITIONINGS)
    yield from ((name, "epsilon", "none") for name in UNETS)
    yield from (("full3d", name, "none") for name in OBJECTIVES if name not in CROSSED_OBJECTIVES)
    yield from (
        ("full3d", "flow_matching_x0_low_noise", name) for name in CONDITIONINGS if name not in CROSSED_CONDITIONINGS
    )


def train_combination(model: str, objective: str, conditioning: str, optimizer: str, steps: int = STEPS) -> list[float]:
    """The losses of a plain loop: step, clip, update; no trainer."""
    words = (f"model={model}", f"objective={objective}", f"conditioning={conditioning}", f"optimizer={optimizer}")
    torch.manual_seed(0)
    tiny = [one for one in TINY if conditioning not in CLASSES or not one.startswith("text_encoder.heads")]
    module = build_module(composed("train", *words, *tiny, *CLASSES.get(conditioning, ())))
    module.log, module.count = lambda *_, **__: None, lambda _: None
    module.configure_model()
    module.train()
    updates = module.optimizer_factory.build(module)
    losses = []
    for batch in batches()[:steps]:
        loss = module.training_step(batch, batch.number)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable_parameters(module), 1.0)
        updates.step()
        updates.zero_grad()
        losses.append(loss.item())
    return losses


class Recorder(Callback):
    """Keeps the loss and the clips of every batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.order = blake2b(digest_size=8)

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: ClipBatch, number: int) -> None:
        """Read them."""
        for name in ("loss", "generator", "discriminator"):
            if isinstance(outputs, dict) and name in outputs:
                self.losses.append(float(outputs[name]))
        self.order.update(repr((batch.number, batch.keys, batch.epochs, batch.size)).encode())


def train_run(words: Sequence[str], optimizer: str, folder: Path) -> Recorder:
    """A training through the DataModule and Lightning's Trainer."""
    clips = folder / "clips" if any(word.startswith("data.bucketing") for word in words) else None
    cfg = composed("train", *SHAPES, *words, f"optimizer={optimizer}", clips=clips)
    torch.manual_seed(0)
    module, data = build_module(cfg), build_data(cfg)
    trainer = build_trainer(cfg, False)
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    trainer.fit(module, datamodule=data)
    return recorder


def cached_words(folder: Path) -> tuple[str, ...]:
    """Encode the shapes; the words that train on what was encoded."""
    words = [word for word in SHAPES if not word.lstrip("+").startswith("trainer")]
    encoded = folder / "encoded"
    if not encoded.is_dir():
        run_curation(composed("curate", "stage=encode", f"folder={encoded}", *words, *MODEL, "data.views=2"))
    return (*MODEL, *RECORDED_WITH, f"data.cache={encoded}", "data.views=2")


def generated(model: str, sampler: str, *words: str) -> str:
    """The hash of videos made by an untrained model whose parameters are all random."""
    torch.manual_seed(0)
    module = build_module(composed("train", f"model={model}", f"sampler={sampler}", *words, *TINY))
    module.configure_model()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    module.eval()
    video = module.pipeline.clips(["a red square", "a dog"], KeyedRNG(0, ("x", "y"), (0, 0)))
    return blake2b(video.numpy().tobytes(), digest_size=8).hexdigest()


def run_named(name: str, optimizer: str, folder: Path) -> Recorder:
    """A run of ``TRAINER_RUNS``, or the one on encoded clips; ``folder`` keeps clips from one to the next."""
    return train_run(cached_words(folder) if name == "cached" else TRAINER_RUNS[name], optimizer, folder)


def record(folder: Path) -> dict[str, Any]:
    """Everything on record, by name."""
    losses, orders = {}, {}
    for combination, optimizer in itertools.product(combinations(), OPTIMIZERS):
        losses[" ".join((*combination, optimizer))] = train_combination(*combination, optimizer)
    for name, optimizer in itertools.product((*TRAINER_RUNS, "cached"), OPTIMIZERS):
        found = run_named(name, optimizer, folder)
        losses[f"{name} {optimizer}"] = found.losses
        orders[name] = found.order.hexdigest()
    videos = {f"{m} {s}": generated(m, s) for m, s in itertools.product(MODELS, choices("sampler")) if s != "pyramid"}
    videos["full3d pyramid"] = generated("full3d", "pyramid", "objective=pyramid_flow")
    return {"losses": losses, "orders": orders, "videos": videos}


def shortened(found: dict[str, Any]) -> str:
    """The losses to eight digits and the orders, a line for each name: what is committed."""
    lines = [f"{json.dumps(n)}: [{', '.join(f'{x:.8g}' for x in losses)}]" for n, losses in found["losses"].items()]
    return '{"losses": {\n' + ",\n".join(lines) + '\n},\n"orders": ' + json.dumps(found["orders"]) + "}\n"


def main() -> None:
    """Write the record to the named file; with ``--losses`` renew losses.json too."""
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = record(Path(folder))
    Path(sys.argv[1]).write_text(json.dumps(found, indent=0) + "\n")
    if "--losses" in sys.argv:
        (HERE / "losses.json").write_text(shortened(found))


if __name__ == "__main__":
    main()
