"""docs/claims.md is what vidlab computes, and says why where that is not what a paper prints."""

from collections import Counter
from pathlib import Path

import pytest

from vidlab.lab.claims.claim import Claim
from vidlab.lab.claims.page import DIFFERENT, PAPERS, by_start, differences, main, row, start, text

PAGE = Path(__file__).parents[3] / "docs" / "claims.md"
CLAIMS = [claim for paper in PAPERS for claim in paper.claims]


def claim(published: str, found: float = 0.0, **settings) -> Claim:
    return Claim("Table 1", "a number", published, lambda: found, **settings)


@pytest.mark.parametrize(
    ("published", "within", "same", "other"),
    [
        ("1.957", None, 1.95736, 1.9576),
        ("65,536", None, 65536.4, 65537),
        ("28", None, 28.5, 28.6),
        ("600", 50, 614.3, 651),
        ("-1.80", None, -1.804, -1.81),
        ("8", 0.0, 8.0, 8.001),
    ],
)
def test_a_number_agrees_where_it_could_have_been_printed_so(published, within, same, other):
    it = claim(published, within=within)
    assert it.agrees(same) and not it.agrees(other)


def test_a_row_by_hand():
    it = claim("1.56", unit="s", remark="in short", contradicts="elsewhere 2")
    assert row(it, 1.5749) == (
        "| Table 1 | a number | 1.56 s | 1.5749 | +0.0149 | **differs** | In short. **contradiction**: elsewhere 2 |"
    )
    assert row(claim("1,000"), 1000.0) == "| Table 1 | a number | 1,000 | 1,000 | +0 | same |  |"


def test_nothing_has_a_sign_where_it_rounds_to_zero():
    assert "| 0.0000 | +0.0000 | same |" in row(claim("0.00"), -1e-9)


def test_there_are_many_and_each_once():
    assert len(CLAIMS) >= 60 and all(len(paper.claims) >= 20 for paper in PAPERS)
    for paper in PAPERS:
        assert [line for line, n in Counter(map(start, paper.claims)).items() if n > 1] == []
    assert sum(bool(one.contradicts) for one in CLAIMS) >= 20


def test_the_page_is_what_is_computed():
    page = PAGE.read_text()
    assert differences(page) == []
    unexplained = [line for line in page.splitlines() if DIFFERENT in line and line.endswith("|  |")]
    assert unexplained == []


@pytest.fixture
def only(monkeypatch):
    """A page of two claims, of which one is slow."""
    claims = (claim("2", 2.0), Claim("eq. 3", "slow", "7", lambda: pytest.fail("computed"), slow=True))
    paper = type(PAPERS[0])("Paper", "there", claims)
    monkeypatch.setattr("vidlab.lab.claims.page.PAPERS", (paper,))
    return claims


def test_a_changed_number_is_found_and_slow_ones_are_left(only, tmp_path, capsys):
    page = tmp_path / "claims.md"
    slow = row(only[1], 7.0)
    page.write_text(text({start(only[1]): slow}))
    assert (
        by_start(page.read_text())[start(only[1])] == slow and "2 numbers: 2 are the same, 0 differ" in page.read_text()
    )
    assert main(["--check", "--page", str(page)]) == 0
    page.write_text(page.read_text().replace("| 2 | 2 | +0 |", "| 2 | 3 | +1 |"))
    assert main(["--check", "--page", str(page)]) == 1
    assert "out of date" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--check", "--page", str(tmp_path / "none.md")])


@pytest.mark.slow
def test_the_slow_rows():
    assert text() == PAGE.read_text()
