"""Where the report of the data plan was: it is ``vidlab plan`` now."""

if __name__ == "__main__":
    raise SystemExit("This report is now: python -m vidlab plan [the same arguments]")
