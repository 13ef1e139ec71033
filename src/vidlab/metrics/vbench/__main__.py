"""Where the report of VBench scores was: it is ``vidlab vbench`` now."""

if __name__ == "__main__":
    raise SystemExit("This report is now: python -m vidlab vbench [the same arguments]")
