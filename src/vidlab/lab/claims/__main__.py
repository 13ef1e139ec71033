"""``python -m vidlab.lab.claims`` writes docs/claims.md; ``--check`` compares."""

from vidlab.lab.claims.page import main

if __name__ == "__main__":
    raise SystemExit(main())
