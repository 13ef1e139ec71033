"""FVD, rFVD, KVD, FID and the inception score as metrics: sets, keys, floors, processes."""

import copy
import json
from datetime import timedelta
from functools import partial

import pytest
import torch
from metric_clips import moving_clips, noise, tiny_frames, tiny_videos

from processes import run_ranks
from vidlab.errors import DataError, UserError
from vidlab.metrics.collection import AtHand, select
from vidlab.metrics.reconstruction.psnr import PSNR
from vidlab.metrics.results import difference
from vidlab.metrics.sets.distances import frechet_distance
from vidlab.metrics.sets.fid import FrameFID
from vidlab.metrics.sets.fvd import FVD
from vidlab.metrics.sets.is_i3d_k400 import InceptionScoreI3D
from vidlab.metrics.sets.kvd import KVD
from vidlab.metrics.sets.rfvd import ReconstructionFVD
from vidlab.metrics.vbench.temporal_flickering import TemporalFlickering

fvd = partial(FVD, frames=9, draws=6)


@pytest.fixture(scope="module")
def clips():
    return moving_clips(24), moving_clips(24, seed=2)


def test_fvd_is_the_frechet_distance_of_all_features(clips):
    metric = fvd(tiny_videos())
    metric.update(clips[0], reference=clips[1])
    features = [tiny_videos()(x[:, :, :9])[:, 0] for x in clips]
    found = metric.result()
    assert found.value == pytest.approx(frechet_distance(*features), rel=1e-6)
    assert metric.compute().item() == found.value
    assert (found.clips, found.reference_clips, found.frames, found.stride) == (24, 24, 9, 1)
    assert found.resolution == (32, 32) and found.resize == "bilinear_antialias to 24 x 24"
    assert found.interval.low < found.value < found.interval.high
    assert found.floor.clips == 12 and found.floor.value > 0
    assert "compare it at equal N only" in found.notes[0] and "parts of 12 clips only" in found.notes[1]
    assert "N 24" in str(found) and "fvd" in str(found)


@pytest.mark.parametrize("kind", [FVD, KVD])
def test_order_and_batches_do_not_matter(clips, kind):
    keys = [f"clip {n}" for n in range(24)]
    whole, parts = (kind(tiny_videos(), frames=9, draws=4) for _ in range(2))
    for metric in (whole, parts):
        metric.add_reference(clips[1], keys)
    whole.update(clips[0], keys=keys)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    for part in order.split(7):
        parts.update(clips[0][part], keys=[keys[n] for n in part])
    parts.update(clips[0][:2], keys=keys[:2])  # padding of a sampler: counted once
    first, second = whole.result(), parts.result()
    assert second.clips == 24
    assert second.value == pytest.approx(first.value, rel=1e-6)
    assert second.interval.half_width == pytest.approx(first.interval.half_width, rel=1e-5)


def test_a_set_and_itself(clips):
    metric = fvd(tiny_videos())
    metric.update(clips[0], reference=clips[0])
    assert abs(metric.result().value) < 1e-2
    kernel = KVD(tiny_videos(), frames=9)
    kernel.update(clips[0], reference=clips[1])
    result = kernel.result()
    assert result.notes == () and abs(result.value) < 3 * result.interval.half_width


def test_the_floor_is_measured_at_n_when_the_reference_is_large_enough():
    metric = fvd(tiny_videos())
    metric.update(moving_clips(6), reference=moving_clips(20, seed=2))
    small = metric.result()
    metric.update(moving_clips(4, seed=3))
    larger = metric.result()
    assert (small.floor.clips, larger.floor.clips) == (6, 10)
    assert small.floor.value > larger.floor.value > 0  # sampling alone makes less of larger sets


def test_fid_counts_frames_and_draws_clips(clips):
    metric = FrameFID(tiny_frames(), frames=3, stride=2, draws=4)
    metric.update(clips[0], reference=clips[1])
    rows = [tiny_frames()(x[:, :, 0:5:2]).flatten(0, 1) for x in clips]
    found = metric.result()
    assert len(rows[0]) == 72 and found.clips == 24 and found.frames == 3
    assert found.value == pytest.approx(frechet_distance(*rows), rel=1e-6)


def test_rfvd_pairs_each_clip_with_its_original(clips):
    metric = ReconstructionFVD(tiny_videos(), frames=9)
    with pytest.raises(UserError, match="own reference"):
        metric.update(clips[0])
    with pytest.raises(DataError, match=r"each clip with its own reference, but the clips are \(24, .* \(3, "):
        metric.update(clips[0], reference=clips[0][:3])
    metric.update(noise(clips[0], 0.2), reference=clips[0], keys=[str(n) for n in range(24)])
    assert metric.result().value > 0


def test_inception_score_as_a_metric(clips):
    metric = InceptionScoreI3D(tiny_videos(), frames=9, splits=3)
    metric.update(clips[0])
    found = metric.result()
    assert found.name == "is_i3d_k400" and 1 < found.value < 24 and found.settings["splits"] == "3"
    few = InceptionScoreI3D(tiny_videos(), frames=9)
    few.update(clips[0][:5])
    with pytest.raises(DataError, match="5 clips do not make 10 parts"):
        few.result()


def test_too_little_is_refused(clips):
    with pytest.raises(UserError, match="frames=8, stride=1: frames must be at least 9"):
        fvd(tiny_videos(), frames=8)
    metric = fvd(tiny_videos(), stride=2)
    with pytest.raises(DataError, match=r"clips have 12 frame.s., this metric needs at least 17"):
        metric.update(clips[0])
    metric = fvd(tiny_videos())
    metric.update(clips[0])
    with pytest.raises(DataError, match="at least 2 clips and 2 reference clips, it was given 24 and 0"):
        metric.result()


def test_values_of_other_n_or_settings_are_not_compared(clips):
    def measured(count, **settings):
        metric = fvd(tiny_videos(), **settings)
        metric.update(clips[0][:count], reference=clips[1])
        return metric.result()

    alike = difference(measured(24), measured(24))
    assert alike.value == 0 and not alike.paired and alike.interval.low < 0 < alike.interval.high
    with pytest.raises(UserError, match="fvd: these values cannot be compared, they differ in N 24 and 20"):
        difference(measured(24), measured(20))
    with pytest.raises(UserError, match="differ in frames 9 and 10"):
        difference(measured(24), measured(24, frames=10))


def test_accumulates_resets_and_checkpoints(clips):
    metric = fvd(tiny_videos())
    metric.update(clips[0][:12], reference=clips[1])
    state = copy.deepcopy(metric.state_dict())
    assert not any("conv" in name for name in state)  # the frozen network is not part of it
    metric.update(clips[0][12:])
    again = fvd(tiny_videos())
    again.load_state_dict(state)
    again.update(clips[0][12:])
    assert again.result().value == pytest.approx(metric.result().value, rel=1e-9)
    metric.reset()
    with pytest.raises(DataError, match="it was given 0 and 0"):
        metric.result()


def test_metrics_with_one_network_share_its_passes(clips, monkeypatch):
    passes = []
    metrics = {
        "fvd": fvd(tiny_videos()),
        "kvd": KVD(tiny_videos(), frames=9),
        "flat": TemporalFlickering(),
        "gone": None,
    }
    chosen = select({**metrics, "psnr": PSNR()}, AtHand(16, "set"))
    assert set(chosen.metrics) == {"fvd", "kvd", "flat"}
    assert chosen.left_out == {"psnr": "it needs one original for each clip"}
    network = chosen.metrics["fvd"].extractor.network
    handle = network.register_forward_hook(lambda *_: passes.append(1))
    for metric in chosen.metrics.values():
        metric.update(clips[0][:8], reference=clips[1][:8])
    handle.remove()
    assert len(passes) == 2  # the clips once, the reference once
    batch = clips[0][:8].clone()
    first = chosen.metrics["fvd"].extractor(batch)
    batch.mul_(0.5)  # changed in place: not the remembered clips any more
    assert not chosen.metrics["fvd"].extractor(batch).equal(first)


def run_rank(rank, folder):
    """Writes what one of two processes finds: with half of the clips, then with all of them or none."""
    wait = timedelta(seconds=120)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2, timeout=wait)
    try:
        torch.set_num_threads(1)
        found = [measure_share(range(rank, 10, 2)), measure_share(range(10) if rank == 0 else range(0))]
    finally:
        torch.distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(found))


def measure_share(numbers):
    clips, real = moving_clips(10, size=16), moving_clips(10, seed=2, size=16)
    distance, flat = FVD(tiny_videos(), frames=9, draws=4), TemporalFlickering()
    for n in numbers:
        distance.update(clips[n : n + 1], reference=real[n : n + 1], keys=[str(n)])
        flat.update(clips[n : n + 1], keys=[str(n)])
    return distance.result().value, flat.result().value, flat.result().keys, float(distance.compute())


def test_two_processes_give_the_values_of_one(commands, tmp_path):
    run_ranks(commands, tmp_path, run_rank, (tmp_path,))
    found = [one for rank in range(2) for one in json.loads((tmp_path / f"{rank}.json").read_text())]
    alone = measure_share(range(10))
    assert len(found) == 4
    for distance, flat, keys, computed in found:
        # references come in another order, so sums differ in their last bits
        assert distance == computed == pytest.approx(alone[0], rel=1e-6)
        assert flat == alone[1] and keys == list(alone[2])


def test_the_reference_is_checked_like_the_clips(clips):
    metric = fvd(tiny_videos())
    metric.update(clips[0], reference=clips[1][..., :24, :])
    assert metric.result().settings["reference resolution"] == "24 x 32"
    with pytest.raises(DataError, match="fvd: reference: clips of 9 frames of 32 x 32 after clips of"):
        metric.add_reference(clips[1])
    with pytest.raises(DataError, match="fvd: reference: 24 clips without one pixel below 0"):
        fvd(tiny_videos()).add_reference((clips[1] + 1) / 2)
    with pytest.raises(DataError, match="reference: clips have 4 frame"):
        fvd(tiny_videos()).update(clips[0], reference=clips[1][:, :, :4])
    metric.reset()
    metric.update((clips[0][:2] + 1) / 2, reference=clips[1])  # too few to be suspicious, after a reset too
