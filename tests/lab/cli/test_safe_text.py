import csv
import io
import logging

import pytest

from vidlab.files import cells, named_cells, terminal
from vidlab.lab.cli.safe_text import markdown, safe_records


def test_a_terminal_obeys_nothing_of_a_text():
    shown = terminal("\x1b]0;title\x07 \x1b[2Jcat\r\x9b31m\u202etxt\ud800 a\n\tb 猫 é می\u200cخ")
    assert shown == "\\x1b]0;title\\x07 \\x1b[2Jcat\\r\\x9b31m\\u202etxt\\ud800 a\n\tb 猫 é می\u200cخ"


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3+cmd", "@SUM(A1)", " =1+1", "＝1"])  # noqa: RUF001
def test_a_spreadsheet_computes_nothing_of_a_text(text):
    file = io.StringIO()
    csv.writer(file).writerow(cells((text, 3, -0.5, "-0.5", "1e-3", "a = b")))
    (row,) = csv.reader(io.StringIO(file.getvalue()))
    assert row[0].startswith("'") and row[1:] == ["3", "-0.5", "-0.5", "1e-3", "a = b"]
    assert named_cells({"caption": text})["caption"] == row[0]


def test_markdown_shows_a_text_and_follows_none_of_it():
    assert markdown("<script>a|b</script>\n# e & \x1b") == ("&lt;script&gt;a\\|b&lt;/script&gt;\\\\n# e &amp; \\\\x1b")
    assert markdown("[x](javascript:1) ![](y) `c` *d*") == "\\[x\\](javascript:1) !\\[\\](y) \\`c\\` \\*d\\*"
    assert markdown("runs/vidlab/2026-11-20_17-44-31/checkpoints/last.ckpt") == (
        "runs/vidlab/2026-11-20_17-44-31/checkpoints/last.ckpt"
    )


def test_log_records_are_safe_and_others_unchanged():
    make = safe_records(logging.LogRecord)
    record = make("name", logging.INFO, "path", 1, "clip %s", ("\x1b[31mred",), None)
    assert record.getMessage() == "clip \\x1b[31mred"
    plain = make("name", logging.INFO, "path", 1, "clip %s", ("red",), None)
    assert plain.args == ("red",)
    assert make("name", logging.INFO, "path", 1, "%d", ("x",), None).args == ("x",), "logging reports it"
