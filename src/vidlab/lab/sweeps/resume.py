"""``resume_sweep=...`` on the command line: the sweep that it names, and the command that goes on with it."""

from collections.abc import Sequence
from pathlib import Path

from vidlab.command_line import command, setting, shell_word
from vidlab.errors import UserError
from vidlab.lab.sweeps.record import RECORD, SweepRecord, read_sweep

KEY, SWEEP_FLAGS = "resume_sweep", ("-m", "--multirun")
RUNS = Path("runs")
# What may be said otherwise when a sweep goes on: who runs the jobs, how many together, and how long a search goes on
# decide none of their numbers.
LAUNCHERS = ("hydra/launcher=", "hydra.launcher.", "+hydra.launcher.", "++hydra.launcher.",
             "hydra.sweeper.max_batch_size=", "hydra.sweeper.trials=")  # fmt: skip
SHOWN = 5


def continued(arguments: Sequence[str], program: str) -> list[str]:
    """The arguments of the whole sweep where ``resume_sweep`` is among these, otherwise these.

    Args:
        arguments: as Hydra takes them.
        program: the primary configuration.

    Raises:
        UserError: there is no such sweep, or the command asks for something else besides.
    """
    named = [word for word in arguments if word.startswith(f"{KEY}=")]
    reference = named[-1].partition("=")[2].strip("'\"") if named else "null"
    if reference in ("null", ""):
        return list(arguments)
    name = next((word.partition("=")[2] for word in arguments if word.startswith("name=")), None)
    folder = find_sweep(reference, name)
    sweep = read_sweep(folder)
    if sweep.is_graph:
        again = command(sweep.program, *sweep.arguments)
        raise UserError(f"{KEY}={reference}: this is a graph of stages. It goes on with: {again}")
    if sweep.program != program:
        raise UserError(
            f"{KEY}={reference}: this is a sweep of {sweep.program}.py: python {sweep.program}.py {named[-1]}"
        )
    typed = [word for word in arguments if word not in named and word not in SWEEP_FLAGS]
    launchers = [word for word in typed if word.startswith(LAUNCHERS)]
    _refuse_others([word for word in typed if word not in launchers], sweep, reference)
    kept = [word for word in sweep.arguments if not word.startswith("hydra.sweep.dir=")]
    if any(word.startswith("hydra/launcher=") for word in launchers):
        kept = [word for word in kept if not word.startswith(LAUNCHERS[:4])]
    changed = {word.partition("=")[0] for word in launchers}
    kept = [word for word in kept if word.partition("=")[0] not in changed]
    return ["--multirun", *kept, *launchers, setting(KEY, folder), setting("hydra.sweep.dir", folder)]


def is_resumption(argument: str) -> bool:
    """Whether an argument names a sweep that goes on."""
    return argument.startswith(f"{KEY}=") and argument != f"{KEY}=null"


def _refuse_others(typed: Sequence[str], sweep: SweepRecord, reference: str) -> None:
    other = [word for word in typed if word not in sweep.arguments and not word.startswith("name=")]
    other += [word for word in typed if word.startswith("name=") and word.partition("=")[2] != sweep.experiment]
    if other:
        raise UserError(
            f"{KEY}={reference} goes on with the sweep as it was begun, and {' '.join(map(shell_word, other))} was no "
            f"part of that. Leave it out; or begin a new sweep: "
            f"{command(f'{sweep.program}.py', '-m', *_merged(sweep.arguments, other))}"
        )


def _merged(words: Sequence[str], others: Sequence[str]) -> list[str]:
    """Command lines in one, in which a later word replaces an earlier one of its key."""
    return list({word.partition("=")[0]: word for word in [*words, *others]}.values())


def find_sweep(reference: str, name: str | None = None) -> Path:
    """The folder of a sweep.

    Args:
        reference: ``last`` (that which was begun last), the id of a sweep, its folder, or the id of its MLflow run.
        name: the experiment whose sweeps ``last`` means; any by default.

    Raises:
        UserError: nothing was found; says what there is.
    """
    path = Path(reference).expanduser()
    if reference != "last" and (path / RECORD).is_file():
        return path
    found = sweeps_called(reference, name)
    if not found:
        of = f" of experiment {name!r}" if name is not None and reference == "last" else ""
        raise UserError(f"{KEY}={reference}: there is no such sweep{of} in {RUNS.resolve()}. {_what_exists()}")
    if len(found) > 1 and reference != "last":
        raise UserError(f"{KEY}={reference}: {len(found)} sweeps have this id, choose a folder: {_listed(found)}.")
    return found[0]


def sweeps_called(reference: str, name: str | None = None, runs: Path = RUNS) -> list[Path]:
    """The folders of recorded sweeps that a word may mean, that which was begun last first.

    Args:
        reference: ``last``, the id of a sweep, or the id of its MLflow run.
        name: the experiment whose sweeps ``last`` means; any by default.
        runs: below which they are looked for.
    """
    known = _known(runs)
    if reference == "last":
        return [folder for folder, sweep in known if name in (None, sweep.experiment) and not sweep.is_graph]
    return [folder for folder, sweep in known if reference in (sweep.id, sweep.parent_run_id)]


def _known(runs: Path) -> list[tuple[Path, SweepRecord]]:
    """The sweeps below a folder, newest first; damaged ones are left out."""
    found = []
    for path in runs.glob(f"*/*/{RECORD}"):
        try:
            found.append((path.parent, read_sweep(path.parent)))
        except UserError:  # said when it is named itself
            continue
    return sorted(found, key=lambda one: (one[1].begun, str(one[0])), reverse=True)


def _what_exists() -> str:
    known = sweeps_called("last")
    return f"Sweeps: {_listed(known)}." if known else "No sweep was begun here."


def _listed(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders[:SHOWN])) + (", ..." if len(folders) > SHOWN else "")
