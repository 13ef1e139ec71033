"""The page of reproduced numbers, docs/claims.md: written, and compared with what it should be."""

import argparse
import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vidlab.lab.claims import harivo, m4v, open_sora_plan, stiv, wfvae
from vidlab.lab.claims.claim import Claim, Paper

PAPERS: tuple[Paper, ...] = (open_sora_plan.PAPER, wfvae.PAPER, stiv.PAPER, m4v.PAPER, harivo.PAPER)
PAGE = Path("docs/claims.md")
HEADER = "| where | claim | published | ours | difference | | remark |\n|---|---|---|---|---|---|---|"
SAME, DIFFERENT = "same", "**differs**"
OPENING = """# Reproduced numbers

What the four papers print, or what follows from it, and can be computed without their data, next to what vidlab
computes. A number is the *same*
where ours, rounded as the paper rounds, is the printed one. `python -m vidlab.lab.claims` writes this page in about a
minute, and `--check` compares all but the slow rows with it.
"""


def start(claim: Claim) -> str:
    """The part of a row that needs no computing."""
    unit = f" {claim.unit}" if claim.unit else ""
    return f"| {claim.where} | {claim.says} | {claim.published}{unit} |"


def row(claim: Claim, found: float) -> str:
    """The whole row."""
    decimals = 0 if claim.decimals == 0 and found == round(found) else claim.decimals + 2
    # no minus zero
    shown, difference = (round(number, decimals) + 0.0 for number in (found, found - claim.value))
    remark = ". ".join(
        part[:1].upper() + part[1:]
        for part in (claim.remark, claim.contradicts and f"**contradiction**: {claim.contradicts}")
        if part
    )
    verdict = SAME if claim.agrees(found) else DIFFERENT
    return f"{start(claim)} {shown:,.{decimals}f} | {difference:+,.{decimals}f} | {verdict} | {remark} |"


def rows(old: Mapping[str, str] | None = None) -> Iterator[tuple[Paper, list[str]]]:
    """The rows of each paper.

    Args:
        old: rows of an earlier page by their beginnings, from which slow ones are taken; None computes them.
    """
    for paper in PAPERS:
        found = []
        for claim in paper.claims:
            known = old is not None and claim.slow
            found.append((old or {}).get(start(claim), "") if known else row(claim, claim.ours()))
        yield paper, found


def text(old: Mapping[str, str] | None = None) -> str:
    """The page; see ``rows``."""
    parts = list(rows(old))
    lines = [line for _, found in parts for line in found]
    same, against = (sum(word in line for line in lines) for word in (f"| {SAME} |", "**contradiction**"))
    derived = sum(claim.derived for paper, _ in parts for claim in paper.claims)
    counts = (
        f"{len(lines)} numbers: {same} are the same, {len(lines) - same} differ; {against} rows name a contradiction. "
        f"{derived} of them are not printed: an equation evaluated, a listing counted, a formula fitted. Their remarks "
        "say so."
    )
    tables = [f"## {paper.title}\n\n{paper.source}\n\n{HEADER}\n" + "\n".join(found) + "\n" for paper, found in parts]
    return "\n".join([OPENING, counts + "\n", *tables])


def by_start(page: str) -> dict[str, str]:
    """The rows of a page by the part that needs no computing: the first three cells."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and line.count("|") >= 7]
    return {"|".join(line.split("|")[:4]) + "|": line for line in lines}


def differences(page: str) -> list[str]:
    """Lines by which a page is not what it should be, slow rows aside."""
    expected = text(by_start(page))
    return list(difflib.unified_diff(page.splitlines(), expected.splitlines(), lineterm="", n=0))[2:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or say where it is not what it should be."""
    parser = argparse.ArgumentParser(prog="vidlab claims", description=main.__doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help=f"the file, by default {PAGE}")
    parser.add_argument("--check", action="store_true", help="compare instead; slow rows are taken as they stand")
    given = parser.parse_args(arguments)
    if not given.check:
        if not given.page.parent.is_dir():
            parser.error(f"{given.page}: no such folder; run this where docs/ is, or give --page FILE")
        given.page.write_text(text(), "utf-8")
        return 0
    if not given.page.is_file():
        parser.error(f"{given.page}: no such file; write it with python -m vidlab.lab.claims")
    found = differences(given.page.read_text("utf-8"))
    if found:
        print(*found, f"{given.page} is out of date: python -m vidlab.lab.claims", sep="\n", file=sys.stderr)
    return int(bool(found))
