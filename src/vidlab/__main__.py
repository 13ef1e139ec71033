"""``python -m vidlab PROGRAM ...``, which an installed vidlab has as the command ``vidlab`` too."""

import os
import sys

from vidlab.lab.cli.programs import PROGRAMS, run_program, usage

# A process of several, started again by Lightning, finds here which program it is part of: its arguments lack the word.
PROGRAM = "VIDLAB_PROGRAM"


def main() -> int:
    """Run the program that the first argument names; returns the exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in PROGRAMS:
        del sys.argv[1]
        os.environ[PROGRAM] = name
    elif "LOCAL_RANK" in os.environ and PROGRAM in os.environ:
        name = os.environ[PROGRAM]
    else:
        asked = name in ("", "-h", "--help")
        print(usage(None if asked else name), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    run_program(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
