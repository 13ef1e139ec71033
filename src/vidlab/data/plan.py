"""The former place of the report of the data plan: it is ``vidlab plan`` now."""

if __name__ == "__main__":
    raise SystemExit("This report is now: python -m vidlab plan [the same arguments]")
