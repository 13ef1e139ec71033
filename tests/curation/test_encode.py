"""Encoding, and training from what was encoded."""

import json
import multiprocessing
import os
import resource
import signal
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
import webdataset as wds
from cached_parts import Noisy
from omegaconf import OmegaConf

from vidlab.curation.cache_writer import LOCK_NAME, missing_shards
from vidlab.data.storage.latent_cache import CacheHeader, ClipCache
from vidlab.errors import CorruptClipError, DataError, UserError
from vidlab.lab.cache_key import settings
from vidlab.lab.compose import build_data

NOISY = ["autoencoder._target_=cached_parts.Noisy"]
# bfloat16 keeps 8 bits: latents differ by 2^-9 of themselves at most, and errors average out in a loss
TOLERANCE = {"rel": 4e-3}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != LOCK_NAME}


@pytest.mark.parametrize(
    ("views", "words"),
    [
        (0, []),
        (2, ["conditioning=frame_replacement", "autoencoder=haar_frames"]),
        (2, NOISY),
        (0, [*NOISY, "task.latents=mode"]),
    ],
)
def test_training_from_a_cache_gives_the_losses_of_training_from_pixels(lab, tmp_path, bert, views, words):
    words = [*words, *(bert() if views else [])]
    cache = lab.encode(tmp_path / "cache", *words, f"data.views={views}", "clips_per_shard=4")
    pixels, cached = lab.train(*words, f"data.views={views}"), lab.train(*words, f"data.cache={cache}")
    assert len(cached.train) == 6 and cached.keys == pixels.keys and cached.captions == pixels.captions
    assert cached.train == pytest.approx(pixels.train, **TOLERANCE) and cached.train != pixels.train
    assert cached.val == pytest.approx(pixels.val, **TOLERANCE) and "val/x0_mse" in cached.val
    # the tolerance tells other crops and captions apart
    other = lab.train(*words, "data.views=3")
    assert other.train != pytest.approx(pixels.train, **TOLERANCE)


def test_clips_pass_the_autoencoder_in_parts(lab, tmp_path, monkeypatch):
    """The cache is the same: it does not say how many frames passed at a time, and training takes either."""
    given, posterior = [], Noisy.posterior
    monkeypatch.setattr(Noisy, "posterior", lambda self, x: given.append(x.shape[2]) or posterior(self, x))
    words = [*NOISY, "autoencoder.frames=1", "model.token=[1,4,4]"]
    whole = lab.encode(tmp_path / "whole", *words)
    assert set(given) == {4}
    given.clear()
    parts = lab.encode(tmp_path / "parts", *words, "frames_at_once=3")
    assert set(given) == {3, 1}
    assert CacheHeader.read(parts) == CacheHeader.read(whole)
    found, expected = (lab.train(*words, f"data.cache={folder}") for folder in (parts, whole))
    assert found.train == pytest.approx(expected.train, **TOLERANCE) and found.keys == expected.keys
    with pytest.raises(UserError, match=r"frames_at_once=0 must be 1 or more, or null"):
        lab.encode(tmp_path / "none", *words, "frames_at_once=0")


def test_how_many_frames_an_autoencoder_takes_at_once_is_no_part_of_a_cache():
    node = OmegaConf.create({"_target_": "x.Y", "width": 8, "chunk": 2, "frames_at_once": 4, "path": "a"})
    assert settings(node, "autoencoder") == {"autoencoder": "x.Y", "autoencoder.width": 8}


def test_bucketed_training_from_a_cache(lab, tmp_path, bert):
    buckets = ["data.bucketing.max_tokens=448", "data.bucketing.stride=4", "data.bucketing.ratios=[[1,1],[4,7],[7,4]]"]
    words = [*buckets, *bert(), "data.bucketing.min_clips=1", "data.views=2"]
    cache = lab.encode(tmp_path / "cache", *words)
    sizes = ClipCache(cache).table.select(["height", "width"]).to_pylist()
    assert {tuple(size.values()) for size in sizes} == {(16, 28), (28, 16), (20, 20)}
    pixels, cached = lab.train(*words), lab.train(*words, f"data.cache={cache}")
    assert cached.train == pytest.approx(pixels.train, **TOLERANCE) and cached.keys == pixels.keys
    with pytest.raises(UserError, match=r"is stale. height of clip clip_01: 28 in the cache, 16 in this run"):
        lab.train(*words, "data.bucketing.ratios=[[1,1]]", f"data.cache={cache}")


def test_workers_read_the_cache(lab, tmp_path):
    cache = lab.encode(tmp_path / "cache")
    assert lab.train(f"data.cache={cache}", "data.num_workers=2").train == lab.train(f"data.cache={cache}").train


def test_unreadable_clips_are_recorded_and_replaced_as_in_training_from_pixels(lab, tmp_path, capsys):
    cache = lab.encode(tmp_path / "cache", clips=12, broken=[1, 6])
    assert "2 cannot be read" in capsys.readouterr().out
    pixels = lab.train("data.views=0", clips=12, broken=[1, 6])
    cached = lab.train(f"data.cache={cache}", clips=12, broken=[1, 6])
    assert cached.keys == pixels.keys and cached.train == pytest.approx(pixels.train, **TOLERANCE)
    assert not {"clip_01", "clip_06"} & {key for keys in cached.keys for key in keys}


def test_the_output_says_what_was_made_and_what_comes_next(lab, tmp_path, capsys):
    folder = lab.encode(tmp_path / "cache", "data.views=2", "clips_per_shard=4", "seed=3")
    out = capsys.readouterr().out
    assert f"{folder}\n  9 clips of data=folder, 2 random views of each" in out
    assert "5 shards written, 0 kept from before; captions stay captions: the text encoder is learned" in out
    assert "data.views=2" in out and f"data.cache={folder}" in out.splitlines()[-1]
    assert "stage=" not in out.splitlines()[-1] and "clips_per_shard" not in out.splitlines()[-1]
    lab.encode(folder, "data.views=2", "clips_per_shard=4", "seed=3")
    assert "0 shards written, 5 kept from before" in capsys.readouterr().out


def test_the_name_of_the_default_folder_changes_with_the_key(lab, cache_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "home"))
    lab.encode("null")
    lab.encode("null", "autoencoder.scale=0.5")
    folders = sorted((tmp_path / "home" / "encoded").iterdir())
    assert len(folders) == 2 and all(ClipCache(folder).table.num_rows == 9 for folder in folders)


def test_a_plain_webdataset_reader_streams_the_shards(lab, tmp_path, bert):
    folder = lab.encode(tmp_path / "cache", *bert(), "clips_per_shard=4")
    cache = ClipCache(folder)
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    read = list(wds.WebDataset(shards, shardshuffle=False, empty_check=False).decode())
    assert [sample["json"]["key"] for sample in read] == cache.table.column("key").to_pylist() and len(read) == 9
    for position, sample in enumerate(read):
        clip = cache.read(position, 0)
        assert torch.equal(torch.from_numpy(sample["latent.npy"]).view(torch.bfloat16), clip.moments)
        assert torch.equal(torch.from_numpy(sample["tokens.npy"]).view(torch.bfloat16), clip.text["tokens"])
        assert sample["mask.npy"].all() and sample["pooled.npy"].shape == (16,)


def kill(process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_encoding_goes_on_where_it_stopped(lab, tmp_path):
    words = ["autoencoder._target_=cached_parts.Slow", "clips_per_shard=2", "batch_size=1"]
    whole = lab.encode(tmp_path / "whole", *words)
    folder = tmp_path / "killed"
    process = multiprocessing.get_context("fork").Process(target=lab.encode, args=(folder, *words))
    process.start()
    deadline = time.monotonic() + 60
    while not (folder / "000001.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(0.06)  # into the next shard
    kill(process)
    assert (folder / "000001.tar").exists() and not (folder / "000004.tar").exists()
    with pytest.raises(UserError, match=r"is not finished: there is no index.parquet. Run the same curate.py command"):
        lab.check(*words[:1], f"data.cache={folder}")
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    lab.encode(folder, *words)
    assert content(folder) == content(whole)
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}.items()


def test_several_processes_write_the_same_bytes(lab, tmp_path):
    words = ["clips_per_shard=2", *NOISY]
    one = lab.encode(tmp_path / "one", *words)
    two = lab.encode(tmp_path / "two", *words, "processes=2")
    assert content(one) == content(two) and len(list(one.glob("*.tar"))) == 5


def test_an_error_in_a_process_is_the_error_of_the_command(lab, tmp_path):
    with pytest.raises(DataError, match=r"^this encoder is out of order$"):
        lab.encode(tmp_path / "cache", "processes=2", "clips_per_shard=5", "autoencoder._target_=cached_parts.Refusing")


def test_latents_that_are_not_finite_are_the_failure_of_their_clip(lab, tmp_path, capsys):
    words = ("autoencoder._target_=cached_parts.PartlyBroken", "data.views=0")
    folder = lab.encode(tmp_path / "cache", *words)
    reason = "PartlyBroken gives latents that are not finite"
    assert f"1 cannot be read, first: clip_09: {reason}" in capsys.readouterr().out
    cache = ClipCache(folder)
    keys = cache.table.column("key").to_pylist()
    for position, key in enumerate(keys):
        if key == "clip_09":
            with pytest.raises(CorruptClipError, match=reason):
                cache.read(position, 0)
        else:
            assert cache.read(position, 0).moments.isfinite().all()
    data = build_data(lab.compose("train", *words, f"data.cache={folder}"))
    batches = list(islice(data.train_dataloader(), 6))
    assert data.corrupt == {"clip_09": reason} and all("clip_09" not in batch.keys for batch in batches)


def test_an_encoder_that_gives_nothing_finite_makes_no_cache(lab, tmp_path):
    with pytest.raises(DataError, match=r"none of 9 clips .* clip_\d\d: Broken gives latents that are not finite"):
        lab.encode(tmp_path / "cache", "autoencoder._target_=cached_parts.Broken")
    assert not (tmp_path / "cache" / "index.parquet").exists()


def test_a_full_disk_loses_nothing_that_is_finished(lab, tmp_path):
    words = ["data.views=2", "clips_per_shard=3"]
    whole = lab.encode(tmp_path / "whole", *words)
    folder = tmp_path / "full"
    header = CacheHeader.read(whole)
    folder.mkdir()
    for name in ("cache.json", "000000.tar"):
        (folder / name).write_bytes((whole / name).read_bytes())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(
            UserError, match=r"the disk is full. 1 finished shards are kept. Make room and run the same"
        ):
            lab.encode(folder, *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert missing_shards(folder, header) == [1, 2, 3, 4, 5] and not list(folder.glob(".*.tmp"))
    lab.encode(folder, *words)
    assert content(folder) == content(whole)


def test_a_deleted_shard_is_made_again(lab, tmp_path):
    folder = lab.encode(tmp_path / "cache", "clips_per_shard=4")
    whole = content(folder)
    (folder / "000001.tar").unlink()
    assert content(lab.encode(folder, "clips_per_shard=4")) == whole


def test_a_folder_is_of_one_cache(lab, tmp_path):
    folder = lab.encode(tmp_path / "cache")
    with pytest.raises(UserError, match=r"holds another cache. autoencoder.scale: 0.3 in the cache, 0.5 in this run"):
        lab.encode(folder, "autoencoder.scale=0.5")
    with pytest.raises(UserError, match=r"holds another cache. clips_per_shard: 256 in the cache, 4 in this run"):
        lab.encode(folder, "clips_per_shard=4")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        lab.encode(other)
    assert (other / "thesis.txt").read_text() == "mine"


def test_two_commands_do_not_write_one_cache(lab, tmp_path):
    from filelock import FileLock

    (tmp_path / "cache").mkdir()
    with FileLock(tmp_path / "cache" / LOCK_NAME), pytest.raises(UserError, match="another process is writing"):
        lab.encode(tmp_path / "cache")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage=captions"], "stage=captions: choose one of index, encode"),
        (["processes=0"], "processes=0: it must be a whole number of 1 or more"),
        (["precision=16-mixed"], "precision=16-mixed: encoders compute in 32-true or bf16-mixed"),
        (["data.cache=old"], r"data.cache is what stage=encode makes: give its place as folder="),
    ],
)
def test_bad_settings(lab, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        lab.encode(tmp_path / "cache", *words)
    assert not (tmp_path / "cache").exists()


def test_the_header_can_be_read_by_people(lab, tmp_path):
    header = json.loads((lab.encode(tmp_path / "cache") / "cache.json").read_text())
    assert header["key"]["autoencoder"] == "vidlab.autoencoders.haar.Haar" and header["key"]["data.frames"] == 4
