from collections import Counter
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from lightning.pytorch import LightningModule, Trainer

from vidlab.autoencoders.haar import Haar
from vidlab.backbones.dit import DiT
from vidlab.callbacks.token_bucketing import TokenBucketing, check_buckets, statistics
from vidlab.data.module import ClipDataModule
from vidlab.data.samplers.assignment import Assignment, Bucket
from vidlab.data.samplers.bucket_plan import BucketPlan
from vidlab.data.samplers.bucketed import BucketedPlan
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.storage.shards import ShardWriter
from vidlab.data.video import VideoInfo, encode
from vidlab.errors import UserError
from vidlab.layers.layouts import Full3D, LayerPlan


class TwoShapes:
    """24 clips of 4 x 16 x 16, 12 of 8 x 16 x 8, and 2 held out."""

    name = "two"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> Path:
        if not (self.folder / "index.parquet").is_file():
            with ShardWriter(self.folder) as writer:
                for n in range(38):
                    shape = (4, 16, 16) if n % 3 else (8, 16, 8)
                    pixels = np.random.default_rng(n).integers(0, 256, (*shape, 3), dtype=np.uint8)
                    split = "val" if n >= 36 else "train"
                    writer.add(f"c{n}", encode(pixels, 8), VideoInfo(*shape, 8.0, 1.0), ["a clip"], split)
        return self.folder


RULE = {"max_tokens": 256, "stride": 8, "ratios": [[1, 1], [2, 1]], "temporal_stride": 4, "max_frames": 8}


@pytest.fixture
def data(tmp_path) -> ClipDataModule:
    return ClipDataModule(TwoShapes(tmp_path / "clips"), "two", 4, 8, 8, batch_size=2, num_workers=0, val_clips=2,
                          bucketing=Bucketing(**RULE))  # fmt: skip


def test_a_run_trains_all_shapes_and_logs_them(data, make_module, make_trainer):
    found: list[dict[str, float]] = []
    callback = TokenBucketing(every_n_steps=6)
    logger = Mock(save_dir=None, **{"log_metrics.side_effect": lambda metrics, step=None: found.append(metrics)})
    trainer = make_trainer(max_steps=12, callbacks=[callback], use_distributed_sampler=False, limit_val_batches=0)
    trainer.loggers = [logger]
    Trainer.fit(trainer, make_module(), datamodule=data)
    found = [metrics for metrics in found if "tokens/per_step_mean" in metrics]
    assert len(found) == 2
    steps = Counter(str(data.plan.bucket(number)) for number in range(12))
    assert set(steps) == {"4x16x16", "8x16x8"}
    for name, count in steps.items():
        assert sum(6 * metrics.get(f"buckets/{name}", 0) for metrics in found) == pytest.approx(count)
    # patches are 2 x 4 x 4 pixels: 2 clips of 4 x 16 x 16 and of 8 x 16 x 8 both make 2 * 32 tokens
    assert all(metrics["tokens/per_step_mean"] == 64 and metrics["tokens/variation"] == 0 for metrics in found)


def test_statistics_by_hand():
    found = statistics(Counter({("4x8x8", 100): 3, ("4x8x8", 50): 1, ("8x8x8", 80): 4}))
    assert found == {
        "tokens/per_step_mean": pytest.approx(83.75),
        "tokens/per_step_min": 50.0,
        "tokens/per_step_max": 100.0,
        "tokens/variation": 0.5,
        "buckets/4x8x8": 0.5,
        "buckets/8x8x8": 0.5,
    }


@pytest.mark.parametrize(
    ("bucket", "rule", "patch", "named"),
    [
        ((4, 20, 16), {"stride": 4}, (1, 2, 2), r"data\.bucketing\.stride=4: bucket 4x20x16 .* tokens of 8 x 8 pixels"),
        ((5, 16, 16), {"first_frame_alone": True}, (1, 1, 1), r"temporal_stride=4, first_frame_alone=True: .*Haar"),
        ((4, 16, 16), {}, (2, 1, 1), r"latent_multiple=1: bucket 4x16x16 gives 1 latent frames.*latent_multiple=2"),
    ],
)
def test_buckets_the_model_cannot_take_are_refused(make_module, bucket, rule, patch, named):
    backbone = partial(DiT, layouts=LayerPlan((Full3D(),)), width=12, depth=1, heads=2, patch=patch)
    module = make_module(False, autoencoder=Haar(4, 4, 4, 1.0), backbone=backbone, clip_shape=(8, 16, 16))
    assignment = Assignment((Bucket(8, 16, 16), Bucket(*bucket)), np.array([0, 1], np.int16))
    settings = {"max_tokens": 256, "temporal_stride": 4, "ratios": None, **rule}
    planned = BucketedPlan(BucketPlan(assignment, [1, 1], 0), assignment, Bucketing(**settings), {})
    with pytest.raises(UserError, match=named):
        check_buckets(planned, module)


def test_setup_checks_the_plan(data, make_module):
    trainer = Mock(spec=Trainer, datamodule=data, world_size=1, global_rank=0)
    TokenBucketing().setup(trainer, make_module(False), "fit")
    backbone = partial(DiT, layouts=LayerPlan((Full3D(),)), width=12, depth=1, heads=2, patch=(4, 16, 16))
    coarse = make_module(False, backbone=backbone, clip_shape=(4, 16, 16))
    with pytest.raises(UserError, match=r"data\.bucketing\.stride=8: bucket 8x16x8 .*tokens of 16 x 16 pixels"):
        TokenBucketing().setup(trainer, coarse, "fit")
    TokenBucketing().setup(trainer, coarse, "validate")
    with pytest.raises(TypeError, match="ClipModule"):
        TokenBucketing().setup(trainer, Mock(spec=LightningModule), "fit")
    with pytest.raises(UserError, match=r"every_n_steps=0"):
        TokenBucketing(0)
