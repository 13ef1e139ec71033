"""Runs whose process is no more, and that the store still shows as running: marked as failed, with how to go on."""

import logging
import re
import shlex
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidlab.command_line import command, setting
from vidlab.lab.tracking.heartbeat import BEAT, SILENT_SECONDS, birth, process_of

log = logging.getLogger(__name__)

RESUME, ENDED = "vidlab.resume", "vidlab.ended"
MOST = 1000


def mark_abandoned(client: Any, experiment_id: str) -> list[str]:
    """Mark the runs of an experiment that the store shows as running and that nobody runs; returns their ids.

    A run is given up when its process was one of this machine and is gone, or, of a process of another machine, when
    there was no heartbeat for half an hour. Status becomes FAILED, as of the last heartbeat; tag ``vidlab.ended`` says
    why, and ``vidlab.resume`` holds the command that goes on. A store that fails at it costs a warning.
    """
    try:
        running = client.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=MOST)
        gone = [run for run in running if is_abandoned(run.data.tags)]
        for run in gone:
            _mark(client, run)
    except Exception as error:
        warnings.warn(f"MLflow did not say which runs were given up ({type(error).__name__})", stacklevel=2)
        return []
    if gone:
        log.warning(
            "%d earlier runs had been stopped without notice and are marked as failed in MLflow; their tag %s says how "
            "to go on.", len(gone), RESUME,
        )  # fmt: skip
    return [str(run.info.run_id) for run in gone]


def is_abandoned(tags: Mapping[str, str]) -> bool:
    """Whether nobody runs a run with these tags; runs that name no process are left alone."""
    process = process_of(dict(tags))
    if process is None:
        return False
    alive = process.alive()
    return not alive if alive is not None else time.time() - _last_beat(tags) > SILENT_SECONDS


def _last_beat(tags: Mapping[str, str]) -> float:
    """Seconds since 1970; without a heartbeat, one that is yet to come."""
    return int(tags[BEAT]) / 1000 if tags.get(BEAT, "").isdigit() else float("inf")


def _mark(client: Any, run: Any) -> None:
    tags, run_id = run.data.tags, run.info.run_id
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(_last_beat(tags), time.time())))
    client.set_tag(run_id, ENDED, f"without notice; last seen {when}")
    client.set_tag(run_id, RESUME, how_to_resume(tags))
    ended = min(_last_beat(tags), time.time())
    client.set_terminated(run_id, "FAILED", end_time=int(ended * 1000))


def how_to_resume(tags: Mapping[str, str]) -> str:
    """The command that continues a run: its sweep's, or its own with its checkpoint; without one, its own again."""
    if "vidlab.sweep" in tags:
        return command("train.py", f"resume_sweep={tags['vidlab.sweep']}")
    folder = Path(tags.get("vidlab.run_folder", ""))
    own = tags.get("vidlab.command", "")
    if not re.match(r"python train\.py\b", own):
        return "run the command again"
    words = [word for word in shlex.split(own)[2:] if not word.startswith("ckpt_path=")]
    saved = [setting("ckpt_path", folder)] if (folder / "checkpoints" / "last.ckpt").is_file() else []
    return command("train.py", *words, *saved)


def take_over(client: Any, run_id: str) -> None:
    """Make a run that has ended one of this process, which goes on with it."""
    tags = client.get_run(run_id).data.tags
    for key, value in birth().items():
        client.set_tag(run_id, key, value)
    client.update_run(run_id, status="RUNNING")
    for key in (ENDED, RESUME):
        if key in tags:
            client.delete_tag(run_id, key)
