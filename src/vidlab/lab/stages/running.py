"""A graph of stages from its first training to its last, whatever ends it between."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vidlab.command_line import as_text, setting
from vidlab.errors import UserError
from vidlab.lab.stages.graph import IMAGE_MODEL, Graph, Stage
from vidlab.lab.stages.trained import TrainedStage, place_of, read_trained, record_trained, stage_key
from vidlab.lab.sweeps.membership import STOPPED
from vidlab.lab.sweeps.own_processes import left_to_process, own_environment
from vidlab.lab.sweeps.parent import ParentRun
from vidlab.lab.sweeps.record import JobRecord, SweepRecord, read_sweep, write_job, write_sweep
from vidlab.lab.sweeps.running import begin_anew, has_checkpoint
from vidlab.lab.tracking.process_identity import this_process

PROGRAM = "-m vidlab.lab.stages"
Launch = Callable[[Sequence[str], Path], int]


@dataclass
class StageRunner:
    """Trains what is missing of a graph, in its folder.

    Args:
        graph: of the stages.
        folder: of the graph; each stage has a folder in it, named by what it is trained from.
        launch: trains with a command line in a folder and returns the exit code.
        parent: the MLflow run above those of the stages.
        tell: called whenever a stage begins or has ended.

    Attributes:
        trained: the stages that have ended, by name.
        places: the folder of each stage whose parents have ended.
        computed: names of the stages that were trained just now.
    """

    graph: Graph
    folder: Path
    launch: Launch
    parent: ParentRun | None = None
    tell: Callable[["StageRunner"], None] = lambda _: None
    trained: dict[str, TrainedStage] = field(default_factory=dict)
    places: dict[str, Path] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)

    def find(self) -> None:
        """Learn which stages have ended, as they are described now."""
        for name, stage in self.graph.stages.items():
            if stage.after <= self.trained.keys() and name not in self.trained:
                key, self.places[name] = self._key(self._with_budget(stage))
                found = read_trained(self.places[name], key)
                if found is not None:
                    self.trained[name] = found

    def run(self, selected: Sequence[str]) -> None:
        """Train the selected stages that have not ended.

        Raises:
            UserError: a stage failed, or one stands on a stage that is neither selected nor trained.
            SystemExit: 130 or 143, when a signal has ended one.
        """
        self.find()
        for name in selected:
            missing = [one for one in sorted(self.graph.stages[name].after) if one not in self.trained]
            if missing and missing[0] not in selected:
                raise UserError(
                    f"stage {name} comes after {missing[0]}, which is not trained as it is described now. Leave from= "
                    f"out, or begin there: from={missing[0]}"
                )
        for name in selected:
            if name not in self.trained:
                self._train(self._with_budget(self.graph.stages[name]))
                self.find()
                self.tell(self)

    def _with_budget(self, stage: Stage) -> Stage:
        """A stage with the FLOPs that another and all that it stands on have taken, where it asks for them."""
        if stage.flops_of is None:
            return stage
        counted = {name: flops_of(self.places[name]) for name in self.graph.needed(stage.flops_of)}
        missing = [name for name, flops in counted.items() if not flops]
        if missing:
            raise UserError(f"stage {stage.name}: the FLOPs of stage {missing[0]} are not in its summary.json.")
        return replace(stage, budget=("flops", sum(counted.values())))

    def _key(self, stage: Stage) -> tuple[str, Path]:
        key = stage_key(stage, self._digests(stage))
        return key, self.folder / place_of(stage, key)

    def _digests(self, stage: Stage) -> dict[str, str]:
        return {name: self.trained[name].digest for name in stage.parents}

    def _train(self, stage: Stage) -> None:
        key, place = self._key(stage)
        job = self._job(stage, place)
        begin_anew(self.folder, [job], self.parent)
        write_job(self.folder, replace(job, state="running", process=this_process()))
        self.tell(self)
        words = [*stage.words(), *self._weights(stage), setting("name", self.graph.name)]
        words.append(setting("hydra.run.dir", place.absolute()))
        if has_checkpoint(self.folder, job):
            words.append(setting("ckpt_path", place.absolute()))
        code = self.launch(words, place)
        if code == 0:
            self.trained[stage.name] = record_trained(stage, key, self._digests(stage), place)
        self._note(job, code)
        if code in STOPPED:
            sys.exit(code)
        if code != 0:
            raise UserError(f"stage {stage.name} failed with exit code {code}; its message stands above.")
        self.computed.append(stage.name)

    def _job(self, stage: Stage, place: Path) -> JobRecord:
        """The record of a stage's run, which is a job of the graph."""
        sweep = read_sweep(self.folder)
        found = next((job for job in sweep.jobs if job.folder == place.name), None)
        if found is None:
            found = JobRecord(len(sweep.jobs), stage.words(), folder=place.name)
            write_sweep(self.folder, sweep.having(found))
        return found

    def _weights(self, stage: Stage) -> list[str]:
        frozen = [name for name, part in stage.parents.items() if part == IMAGE_MODEL]
        words = [setting("model.image_model", self.places[name].absolute()) for name in frozen]
        giving = [name for name in stage.parents if name not in frozen]
        if not giving:
            return [*words, "init=none"]
        runs = ",".join(f"{name}:{as_text(self.places[name].absolute())}" for name in giving)
        parts = ",".join(f"{name}:{stage.parents[name]}" for name in giving)
        return [*words, "init=parents", f"init.runs={{{runs}}}", f"init.parts={{{parts}}}"]

    def _note(self, job: JobRecord, code: int) -> None:
        """How a stage ended; its own process may have said so, with the reason, before."""
        said = next(one for one in read_sweep(self.folder).jobs if one.number == job.number)
        state: Any = "finished" if code == 0 else "interrupted" if code in STOPPED else "failed"
        message = "" if code == 0 else said.message
        write_job(self.folder, replace(said, state=state, message=message))
        trained = next(
            (one for one in self.trained.values() if self.places.get(one.stage, Path()).name == job.folder), None
        )
        if self.parent is not None and said.run_id and trained is not None:
            self.parent.tell(tags_of_stage(trained), said.run_id)


def summary_of_stage(folder: Path) -> Mapping[str, Any]:
    """The summary that the run of a stage has left; empty where it has none."""
    try:
        found = json.loads((folder / "summary.json").read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def flops_of(folder: Path) -> float:
    """FLOPs of the denoiser in the run of a stage; 0 where they are not known."""
    return float((summary_of_stage(folder).get("cost") or {}).get("flops") or 0.0)


def tags_of_stage(trained: TrainedStage) -> dict[str, str]:
    """Of the MLflow run of a stage: its name, the digest of its weights and those of its parents."""
    tags = {"vidlab.stage": trained.stage, "vidlab.weights_digest": trained.digest}
    return tags | {f"vidlab.parent.{name}": f"{part} {digest}" for name, (part, digest) in trained.parents.items()}


def run_as_command(words: Sequence[str], _: Path) -> int:
    """Train in a process of its own, to which signals are handed on; returns its exit code."""
    with left_to_process() as started:
        process = subprocess.Popen([sys.executable, "-m", "vidlab", "train", *words], env=own_environment())
        started.append(process)
        return process.wait()


def new_record(graph: Graph, folder: Path, arguments: Sequence[str]) -> SweepRecord:
    """The record of a graph of which nothing has begun."""
    return SweepRecord(folder.name, graph.name, None, PROGRAM, tuple(arguments), time.time_ns())


def states_of(runner: StageRunner) -> Mapping[str, str]:
    """For each stage ``finished``, how its run stands, or ``planned``."""
    jobs = {job.folder: job.state for job in read_sweep(runner.folder).jobs}
    return {
        name: "finished" if name in runner.trained else jobs.get(runner.places.get(name, Path()).name, "planned")
        for name in runner.graph.stages
    }
