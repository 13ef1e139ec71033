from .command import Done, Lab

SMALL = ("data.source.train_clips=32", "data.source.val_clips=8", "trainer=cpu", "precision=32-true")


def curate(lab: Lab, *arguments: str, **options) -> Done:
    return lab.commands.run("curate.py", *SMALL, *arguments, cwd=lab.folder, **options)


def test_from_clips_to_a_run_on_their_latents(lab):
    done = curate(lab, "stage=index")
    assert done.code == 0, done.err
    assert "data=moving_shapes: 40 clips" in done.out and "splits: 32 train, 8 val" in done.out
    done = curate(lab, "stage=encode", "folder=latents", "clips_per_shard=8")
    assert done.code == 0, done.err
    assert "4 shards written, 0 kept from before" in done.out
    assert not list(lab.folder.glob("*.log")) and not (lab.folder / ".hydra").exists()
    arguments = ("data.source.train_clips=32", "data.cache=latents", "trainer.max_steps=1", "callbacks.previews=null")
    done = lab.train(*arguments)
    assert done.code == 0, done.err
    assert "val/x0_mse" in done.out
    done = lab.train(*arguments, "autoencoder.scale=0.5")
    assert done.code == 2 and done.message.startswith(
        "data.cache=latents is stale. autoencoder.scale: 0.3 in the cache, 0.5 in this run. Encode again"
    )


def test_a_full_disk_is_one_message(lab):
    assert curate(lab, "stage=index").code == 0  # the clips are rendered before the disk is full
    done = curate(lab, "stage=encode", "folder=latents", "clips_per_shard=8", max_file_bytes=200_000)
    assert done.code == 2 and "the disk is full. 0 finished shards are kept" in done.message
    assert "Traceback" not in done.err
    done = curate(lab, "stage=encode", "folder=latents", "clips_per_shard=8")
    assert done.code == 0 and "4 shards written" in done.out


def test_words_nobody_knows(lab):
    done = curate(lab, "stage=encode", "shards=4")
    assert done.code == 2 and "shards" in done.message
