"""``python -m vidlab.lab.stages <file> [from=..] [until=..]``."""

import sys
from collections.abc import Sequence

from vidlab.command_line import exit_code


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing of a graph of stages."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    from vidlab.lab.stages.command import USAGE, run_stages

    if {"-h", "--help"} & set(typed):
        print(USAGE)
        return
    run_stages(typed)


if __name__ == "__main__":
    sys.exit(main())
