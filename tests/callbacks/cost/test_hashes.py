"""Tags that two runs share when they saw the same clips in the same order, and the same noise."""

import pytest

from vidlab.autoencoders.haar import Haar
from vidlab.callbacks.cost.hashes import data_order, noise, shared_tags
from vidlab.data.module import ClipDataModule
from vidlab.data.moving_shapes import MovingShapes
from vidlab.data.samplers.buckets import Bucketing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def make_data(folder):
    def make(clips: int = 12, **settings) -> ClipDataModule:
        source = MovingShapes(
            difficulty="plain", frames=4, height=16, width=16, train_clips=clips, val_clips=2, cache_dir=folder
        )
        sizes = {"frames": 4, "height": 16, "width": 16, "batch_size": 2}
        return ClipDataModule(source, "moving_shapes", **(sizes | settings))

    return make


def stream(data: ClipDataModule, world_size: int, accumulate: int, steps: int = 9) -> list[set]:
    """The clips of each optimizer step."""
    plan = data.planned(world_size).plan
    return [
        {ref for n in range(step * accumulate, (step + 1) * accumulate) for rank in range(world_size)
         for ref in plan.batch(n, rank)}
        for step in range(steps)
    ]  # fmt: skip


def test_equal_hashes_are_equal_streams_and_others_are_others(make_data):
    kinds = [
        (make_data(), 1, 1), (make_data(seed=1), 1, 1), (make_data(batch_size=4), 1, 1), (make_data(clips=14), 1, 1),
        (make_data(), 2, 1), (make_data(), 1, 2), (make_data(batch_size=1), 2, 2), (make_data(num_workers=3), 1, 1),
    ]  # fmt: skip
    found = [(data_order(*kind), stream(*kind), kind[0].data.hash) for kind in kinds]
    for a, clips_a, index_a in found:
        for b, clips_b, index_b in found:
            assert (a == b) == ((clips_a, index_a) == (clips_b, index_b))
    assert len({order for order, *_ in found}) == 4 and all(len(order) == 12 for order, *_ in found)


def test_other_views_and_buckets_are_other_orders(make_data):
    orders = [data_order(make_data(**settings), 1, 1) for settings in (
        {}, {"views": 0}, {"height": 8}, {"bucketing": Bucketing(max_tokens=256, stride=8)},
        {"bucketing": Bucketing(max_tokens=256, stride=8, tail="drop")},
    )]  # fmt: skip
    assert len(set(orders)) == 5


def test_noise_is_shared_where_latents_and_their_keys_are(make_module, make_data):
    data, other = make_data(), make_data(seed=1)
    module, size = make_module(built=False, clip_shape=(4, 16, 16)), {"built": False, "clip_shape": (4, 16, 16)}

    def of(module, data=data, device="cpu"):
        return noise(module, data, data_order(data, 1, 1), device)

    same = make_module(**size, text_dropout=0.5)
    assert of(module) == of(same)
    assert len({of(module), of(module, other), of(module, device="cuda"), of(make_module(**size, seed=1)),
                of(make_module(**size, autoencoder=Haar(2, 2, 2)))}) == 5  # fmt: skip
    tags = shared_tags(module, data, 1, 1, "cpu")
    assert tags == {"vidlab.data_order": data_order(data, 1, 1), "vidlab.noise": of(module)}
