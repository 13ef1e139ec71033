import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidlab.files import folder_made_aside, open_table, remove_leftovers, write_json, write_text, written_aside
from vidlab.lab.cli.error_messages import explain


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = write_text(tmp_path / "a.json", "old")
    with pytest.raises(OSError) as caught, written_aside(path) as aside:
        aside.write_text("ha")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert explain(caught.value) == f"{path}: the disk is full; free some space or choose another folder."
    assert path.read_text() == "old"
    write_json(path, {"a": [1]})
    assert path.read_text() == '{\n  "a": [\n    1\n  ]\n}\n'
    with open_table(tmp_path / "t.csv") as file:
        file.write("a,b\r\n")
        assert not (tmp_path / "t.csv").exists()
    assert (tmp_path / "t.csv").read_bytes() == b"a,b\r\n" and names(tmp_path) == ["a.json", "t.csv"]


def test_two_processes_share_no_temporary_name(tmp_path):
    with written_aside(tmp_path / "a") as mine:
        code = "import sys, pathlib; from vidlab.files import write_text; write_text(pathlib.Path(sys.argv[1]), 'x')"
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True)
        mine.write_text("y")
    assert (tmp_path / "a").read_text() == "y"


def test_leftovers_of_the_dead_are_removed_and_no_others(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    quiet = time.time() - 3600
    for name, age in ((f".a.{child.pid}.tmp", quiet), (f".b.{os.getpid()}.tmp", quiet),
                      (f".c.{child.pid}.tmp", time.time()), (".d.mine.tmp", quiet), (".e.tmp", quiet)):  # fmt: skip
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (age, age))
    (tmp_path / f".f.{child.pid}.tmp").mkdir()
    os.utime(tmp_path / f".f.{child.pid}.tmp", (quiet, quiet))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([f".b.{os.getpid()}.tmp", f".c.{child.pid}.tmp", ".d.mine.tmp", ".e.tmp"])


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_there_with_all_its_files_or_without_any(tmp_path, there):
    folder = tmp_path / "export"
    if there:
        write_text(tmp_path / "README", "")
        folder.mkdir()
        write_text(folder / "README", "")
    before = names(tmp_path)
    with pytest.raises(KeyboardInterrupt), folder_made_aside(folder) as aside:
        (aside / "weights").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == before
    with folder_made_aside(folder) as aside:
        (aside / "weights").write_text("whole")
        (aside / "config").write_text("whole")
    assert names(tmp_path) == sorted({*before, "export", "export/config", "export/weights"})
