"""``python -m vidlab.lab.stages <file> [from=..] [until=..]``."""

import sys
from collections.abc import Sequence

from vidlab.errors import UserError
from vidlab.lab.cli.safe_text import terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing of a graph of stages; returns the exit code."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    from vidlab.lab.stages.command import USAGE, run_stages

    if {"-h", "--help"} & set(typed):
        print(USAGE)
        return 0
    try:
        run_stages(typed)
    except UserError as error:
        print(terminal(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
