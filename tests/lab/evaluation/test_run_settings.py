import logging

import pytest
from omegaconf import OmegaConf

from vidlab.errors import UserError
from vidlab.lab.evaluation.run import runs_of, set_size
from vidlab.lab.sweeps.record import JobRecord, SweepRecord, write_sweep


@pytest.mark.parametrize(("stride", "made", "wanted"), [(1, 8, 16), (3, 22, 46)])
def test_a_source_that_renders_its_clips_renders_them_as_long_as_is_asked(stride, made, wanted):
    source = {"frames": made, "height": 32, "width": 64}
    data = OmegaConf.create({"frames": 8, "height": 32, "width": 32, "frame_stride": stride, "source": source})
    set_size(data, (16, 32, 48))
    assert (data.frames, data.height, data.width) == (16, 32, 48)
    assert data.source == {"frames": wanted, "height": 32, "width": 64}  # its width was never the clips'


def test_other_data_keep_what_they_are_made_from():
    data = OmegaConf.create({"frames": 8, "height": 32, "width": 32, "source": {"path": "/x", "height": 720}})
    set_size(data, (16, 64, 64))
    assert data.source == {"path": "/x", "height": 720}
    data = OmegaConf.create({"frames": 8, "height": 32, "width": 32})
    set_size(data, (8, 32, 32))
    assert data == {"frames": 8, "height": 32, "width": 32}


def test_a_sweeps_folder_names_its_runs(tmp_path):
    for job in ("10", "2", "failed"):
        (tmp_path / job / "checkpoints").mkdir(parents=True)
        if job != "failed":
            (tmp_path / job / "checkpoints" / "last.ckpt").touch()
    assert runs_of(str(tmp_path)) == [str(tmp_path / "2"), str(tmp_path / "10")]
    for one in (str(tmp_path / "2"), "last", str(tmp_path / "failed" / "checkpoints")):
        assert runs_of(one) == [one]


def test_jobs_that_did_not_finish_are_named_and_take_no_part(tmp_path, caplog):
    states = ("finished", "interrupted", "finished", "failed")
    jobs = tuple(JobRecord(n, (f"seed={n}",), state, folder=f"seed={n}") for n, state in enumerate(states))
    for job in jobs:
        (tmp_path / job.folder / "checkpoints").mkdir(parents=True)
        (tmp_path / job.folder / "checkpoints" / "last.ckpt").touch()
    write_sweep(tmp_path, SweepRecord("one", "vidlab", None, "train", (), 1, jobs))
    with caplog.at_level(logging.WARNING):
        assert runs_of(str(tmp_path)) == [str(tmp_path / "seed=0"), str(tmp_path / "seed=2")]
    assert "left out are job 1 (interrupted), job 3 (failed)" in caplog.text
    write_sweep(tmp_path, SweepRecord("one", "vidlab", None, "train", (), 1, jobs[3:]))
    with pytest.raises(UserError, match=r"no job of this sweep has finished: job 3 \(failed\)"):
        runs_of(str(tmp_path))
