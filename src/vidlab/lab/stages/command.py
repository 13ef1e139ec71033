"""``python -m vidlab.lab.stages <file>``: read, check, train what is missing, show what came of it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from vidlab.command_line import command
from vidlab.errors import UserError
from vidlab.files import terminal
from vidlab.lab.cli.composed import compose
from vidlab.lab.runs.run_folder import RUNS
from vidlab.lab.runs.run_lock import held_lock
from vidlab.lab.stages.graph import Graph, read_graph
from vidlab.lab.stages.report import PICTURE, SUMMARY, table_of, write_report
from vidlab.lab.stages.running import PROGRAM, Launch, StageRunner, new_record, run_as_command, states_of
from vidlab.lab.stages.seeds import compare_seeds, in_words, split_seeds
from vidlab.lab.sweeps.parent import ParentRun
from vidlab.lab.sweeps.record import RECORD, read_sweep, write_sweep
from vidlab.lab.sweeps.running import LOCK, terminable
from vidlab.lab.tracking.heartbeat import Heartbeat

USAGE = """python -m vidlab.lab.stages FILE [from=STAGE] [until=STAGE] [plan=true] [key=value ...]

Train a graph of stages, each from the weights of its parents. What has been trained as it is described is not trained
again; whatever ends the command, the same command goes on.

  FILE      such as experiments/stiv/stages_laptop.yaml
  from=     begin with this stage; what it stands on must be trained
  until=    end with this stage
  plan=     true: check every stage and say what would be trained
  seeds=    0,1 trains the graph with each and compares what the file names under compare
  key=      settings of train.py for every stage, such as trainer=gpu or logger=none"""

OWN = ("from", "until", "plan")  # the others are settings of every stage


@dataclass(frozen=True)
class StagesRequest:
    """A command: the graph, the stages to train, and whether to say so only."""

    graph: Graph
    selected: tuple[str, ...]
    plan: bool
    arguments: tuple[str, ...]


def read_request(arguments: Sequence[str]) -> StagesRequest:
    """What was typed.

    Raises:
        UserError: no file, an unknown stage, or a word that is no setting.
    """
    files = [word for word in arguments if "=" not in word]
    if len(files) != 1:
        raise UserError(f"Name one file of stages, and settings as key=value.\n\n{USAGE}")
    own = {key: value for key, _, value in (word.partition("=") for word in arguments) if key in OWN}
    if own.get("plan", "false") not in ("true", "false"):
        raise UserError(f"plan={own['plan']}: true or false.")
    extra = [word for word in arguments if "=" in word and word.partition("=")[0] not in OWN]
    graph = read_graph(Path(files[0]), extra)
    selected = graph.selected(own.get("from"), own.get("until"))
    return StagesRequest(graph, selected, own.get("plan") == "true", tuple(arguments))


def run_stages(arguments: Sequence[str], launch: Launch = run_as_command) -> StageRunner:
    """Run a command; returns what became of the graph.

    Raises:
        UserError: what was typed, the file or a stage cannot work.
        SystemExit: 130 or 143, when a signal has ended a stage.
    """
    seeds, rest = split_seeds(arguments)
    if not seeds:
        return run_once(read_request(rest), launch)
    asked = {seed: replace(read_request([*rest, f"seed={seed}"]), arguments=tuple(arguments)) for seed in seeds}
    runners = {seed: run_once(one, launch) for seed, one in asked.items()}
    if not asked[seeds[0]].plan:
        print(terminal(in_words(compare_seeds(runners))), flush=True)
    return runners[seeds[-1]]


def run_once(asked: StagesRequest, launch: Launch = run_as_command) -> StageRunner:
    """Run a graph once; as ``run_stages``."""
    configs = {name: _checked(asked.graph, name) for name in asked.selected}
    folder = RUNS / asked.graph.name / "stages"
    if asked.plan:
        runner = StageRunner(asked.graph, folder, launch)
        runner.find()
        _say_plan(runner, asked.selected)
        return runner
    with held_lock(folder / LOCK, "these stages are being trained"), terminable():
        return _run(asked, next(iter(configs.values())), folder, launch)


def _checked(graph: Graph, name: str) -> DictConfig:
    """The configuration of a stage without its parents: a mistake in a late stage is found before the first trains."""
    try:
        return compose(*graph.stages[name].words(), f"name={graph.name}")
    except UserError as error:
        raise UserError(f"stage {name}: {error}") from error


def _run(asked: StagesRequest, config: DictConfig, folder: Path, launch: Launch) -> StageRunner:
    resumed = (folder / RECORD).is_file()
    record = read_sweep(folder) if resumed else new_record(asked.graph, folder, asked.arguments)
    record = replace(record, arguments=asked.arguments)
    parent = ParentRun.open(config, record, folder, resumed)
    write_sweep(folder, replace(record, parent_run_id=parent.run_id if parent else None))
    runner = StageRunner(asked.graph, folder, launch, parent, _show)
    pulse = Heartbeat(folder, parent.tell if parent else lambda _: None)
    pulse.start()
    state = "interrupted"
    try:
        runner.run(asked.selected)
        state = "finished"
    except UserError:
        state = "failed"
        raise
    finally:
        pulse.stop()
        write_sweep(folder, read_sweep(folder))
        _end(runner, parent, state, asked)
    return runner


def _show(runner: StageRunner) -> None:
    write_report(runner)
    states = states_of(runner)
    running = [name for name, state in states.items() if state == "running"]
    done = sum(state == "finished" for state in states.values())
    if running:
        print(terminal(f"\nStage {running[0]} ({done} of {len(states)} are trained)"), flush=True)
    if runner.parent is not None:
        runner.parent.tell({f"vidlab.stage.{name}": state for name, state in states.items()})


def _end(runner: StageRunner, parent: ParentRun | None, state: str, asked: StagesRequest) -> None:
    write_report(runner)
    table = table_of(runner)
    print(terminal("\n".join(["", *(f"  {line}" for line in table.text().splitlines()), ""])), flush=True)
    print(terminal(f"  picture      {runner.folder / PICTURE}\n  as data      {runner.folder / SUMMARY}"), flush=True)
    if parent is not None:
        parent.tell({f"vidlab.stage.{name}": one for name, one in states_of(runner).items()})
        parent.keep_files([runner.folder / PICTURE, runner.folder / SUMMARY], "stages")
        parent.close(state)
        print(terminal(f"  MLflow run   {parent.page}"), flush=True)
    if state != "finished":
        print(terminal(f"\nGo on with: {command(PROGRAM, *asked.arguments)}"), file=sys.stderr, flush=True)


def _say_plan(runner: StageRunner, selected: Sequence[str]) -> None:
    for name, stage in runner.graph.stages.items():
        what = "trained" if name in runner.trained else "to train" if name in selected else "left out"
        parents = ", ".join(f"{parent} ({part})" for parent, part in stage.parents.items()) or "nothing"
        print(terminal(f"{name}: {what}; from {parents}\n  {command('train.py', *stage.words())}"))
