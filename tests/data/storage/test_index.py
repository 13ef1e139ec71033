import itertools
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidlab.data.datasets.splits import GatheredRows
from vidlab.data.storage import index_writer, row_store
from vidlab.data.storage.clip_row import factors_from_json, factors_to_json
from vidlab.data.storage.index import COLUMNS, ClipIndex, ClipRow, write_index
from vidlab.data.storage.index_writer import IndexWriter
from vidlab.data.storage.row_store import BLOCK_ROWS
from vidlab.errors import DataError
from vidlab.factors import Factors, ObjectFactors

# Values by field name, so that the test holds for whatever factors a rendered clip has.
SAMPLES = {str: "red", bool: True, int: 3, tuple[float, ...]: (0.25, 0.5), tuple[str, ...]: ("red", "plain")}


def some_factors() -> Factors:
    def filled(kind: type, **given):
        rest = {k: SAMPLES[v] for k, v in kind.__annotations__.items() if k not in given}
        return kind(**given, **rest)

    return filled(Factors, objects=(filled(ObjectFactors), filled(ObjectFactors, shape="disc")))


def row(key: str = "a", **changes) -> ClipRow:
    first = ClipRow(key, "000000.tar", 512, 99, 8, 32, 48, 8.0, 1.0, ("one", "two"), "train", "film", None)
    return replace(first, **changes)


def test_rows_come_back_as_written(tmp_path):
    rows = [row("a"), row("b", factors=some_factors(), split="val", fps=29.97, duration=8 / 29.97)]
    write_index(tmp_path, rows, {"difficulty": "easy"})
    index = ClipIndex.open(tmp_path)
    assert len(index) == 2 and [index.row(0), index.row(1)] == rows
    assert index.metadata == {"difficulty": "easy"} and index.root == tmp_path
    assert index.column("key") == ["a", "b"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and names[1] == "index.parquet" and names[0].endswith(".rows")
    for position in (-1, 2):
        with pytest.raises(IndexError):
            index.row(position)


def test_factors_are_plain_json():
    text = factors_to_json(some_factors())
    assert json.loads(text)["objects"][1]["shape"] == "disc"
    assert factors_from_json(text) == some_factors()
    earlier = text.replace("color", "colour")  # as indices of earlier versions spell the names
    assert earlier != text and factors_from_json(earlier) == some_factors()
    assert factors_to_json(None) is None and factors_from_json(None) is None


def test_select_keeps_order_and_identity(tmp_path):
    lengths = {"a": 8, "b": 20, "c": 12, "d": 30}
    write_index(tmp_path, [row(k, frames=n, split="val" if k == "d" else "train") for k, n in lengths.items()], {})
    index = ClipIndex.open(tmp_path)
    assert index.select("train", min_frames=12).column("key") == ["b", "c"]
    assert index.select(min_frames=12).column("key") == ["b", "c", "d"]
    assert index.select("val").row(0).key == "d" and len(index.select("test")) == 0
    assert index.select("train").hash == index.hash


def test_hash_is_of_the_clips_not_of_where_they_lie(tmp_path):
    def hash_of(*rows: ClipRow, **metadata) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write_index(folder, list(rows), metadata)
        return ClipIndex.open(folder).hash

    same = hash_of(row("a"), row("b"))
    assert same == hash_of(row("a", shard="000009.tar", offset=0), row("b"))
    changed = [
        hash_of(row("b"), row("a")),
        hash_of(row("a", captions=("other",)), row("b")),
        hash_of(row("a", split="val"), row("b")),
        hash_of(row("a", frames=9), row("b")),
        hash_of(row("a", factors=some_factors()), row("b")),
        hash_of(row("a"), row("b"), version=2),
        hash_of(row("a")),
    ]
    assert same not in changed and len(set(changed)) == len(changed)


def test_two_clips_of_one_name_are_refused(tmp_path):
    with pytest.raises(DataError, match="'a'"):
        write_index(tmp_path, [row("a"), row("a")], {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_an_index_is_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        ClipIndex.open(tmp_path)
    (tmp_path / "index.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read"):
        ClipIndex.open(tmp_path)
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "index.parquet")
    with pytest.raises(DataError, match=r"not an index of clips.*shard"):
        ClipIndex.open(tmp_path)
    pq.write_table(pa.table({name: ["a"] for name in COLUMNS}), tmp_path / "index.parquet")
    with pytest.raises(DataError, match="header"):
        ClipIndex.open(tmp_path)


def test_scores_are_carried(tmp_path):
    rows = [row("a", scores={"motion": 2.5, "aesthetic": 5.0}), row("b")]
    write_index(tmp_path, rows, {})
    index = ClipIndex.open(tmp_path)
    assert [index.row(0).scores, index.row(1).scores] == [{"motion": 2.5, "aesthetic": 5.0}, {}]
    assert pq.read_table(tmp_path / "index.parquet")["scores"][0].as_py() == [("aesthetic", 5.0), ("motion", 2.5)]


def test_the_hash_of_an_index_without_scores_is_the_one_from_before_there_were_any(tmp_path):
    """128 bits that an index of these two rows had when rows had no scores; runs of that time can be resumed."""
    write_index(tmp_path, [row("a"), row("b", split="val", fps=29.97)], {"difficulty": "easy"})
    assert ClipIndex.open(tmp_path).hash == "b7d96a17903802e1d4b02e55d4f498e5"
    scored = tmp_path / "scored"
    scored.mkdir()
    write_index(scored, [row("a", scores={"motion": 1.0}), row("b", split="val", fps=29.97)], {"difficulty": "easy"})
    assert ClipIndex.open(scored).hash != ClipIndex.open(tmp_path).hash


def some_rows(count: int) -> list[ClipRow]:
    return [
        row(f"k{n}", shard=f"{n // 7}.tar", offset=n, frames=n % 50 + 1, fps=24 + n % 3, captions=(f"text {n}",),
            split="val" if n % 10 == 9 else "train", source=f"film/{n // 5}")
        for n in range(count)
    ]  # fmt: skip


def test_columns_and_rows_agree_across_groups_and_blocks(tmp_path, monkeypatch):
    """Groups of rows, blocks of the file of rows and selections end at different places."""
    monkeypatch.setattr(index_writer, "GROUP_ROWS", 50)
    rows = some_rows(3 * BLOCK_ROWS + 5)
    write_index(tmp_path, rows, {})
    index = ClipIndex.open(tmp_path)
    part = index.select("train", min_frames=20)
    expected = [row for row in rows if row.split == "train" and row.frames >= 20]
    for chosen, those in ((index, rows), (part, expected)):
        assert [chosen.row(n) for n in range(len(chosen))] == those
        assert chosen.column("captions") == [list(row.captions) for row in those]
        for name in ("frames", "offset", "fps"):
            assert chosen.numbers(name).tolist() == [getattr(row, name) for row in those]
        shards = [row.shard for row in those]
        changes = np.cumsum([0, *(one != other for one, other in itertools.pairwise(shards))])
        assert chosen.shard_numbers().tolist() == changes.tolist()
        texts = [names[code] for _, codes, names in chosen.texts("source") for code in codes]
        assert texts == [row.source for row in those]
    twice = part.select(min_frames=40)
    assert [twice.row(n).key for n in range(len(twice))] == [row.key for row in expected if row.frames >= 40]


def test_an_index_can_be_sent_to_another_process(tmp_path):
    rows = some_rows(100)
    write_index(tmp_path, rows, {})
    sent = pickle.loads(pickle.dumps(ClipIndex.open(tmp_path).select("val")))
    assert [sent.row(n) for n in range(len(sent))] == [row for row in rows if row.split == "val"]


def test_an_index_without_its_file_of_rows_gets_one(tmp_path, monkeypatch):
    """Such as one that was copied alone, or made before there were scores."""
    rows = some_rows(BLOCK_ROWS + 3)
    write_index(tmp_path, rows, {"a": 1})
    before = ClipIndex.open(tmp_path)
    (beside,) = tmp_path.glob("*.rows")
    beside.unlink()
    old = pq.read_table(tmp_path / "index.parquet").drop_columns(["scores"])
    header = {**json.loads(pq.ParquetFile(tmp_path / "index.parquet").metadata.metadata[b"vidlab"])}
    del header["rows"]
    pq.write_table(old.replace_schema_metadata({"vidlab": json.dumps(header)}), tmp_path / "index.parquet")
    index = ClipIndex.open(tmp_path)
    assert [index.row(n) for n in range(len(index))] == rows and index.hash == before.hash
    (made,) = tmp_path.glob("*.rows")
    stamp = made.stat().st_mtime_ns
    assert ClipIndex.open(tmp_path).row(3) == rows[3] and made.stat().st_mtime_ns == stamp
    # a folder that cannot be written to
    made.unlink()
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert ClipIndex.open(tmp_path).row(5) == rows[5]
    assert len(list((tmp_path / "cache" / "rows").glob("*.rows"))) == 1 and not list(tmp_path.glob("*.rows"))


def test_rows_of_an_index_written_again_are_its_own(tmp_path):
    """Other offsets with the same hash: the file of rows goes with the index, and the old one is gone."""
    rows = some_rows(20)
    write_index(tmp_path, rows, {})
    moved = [replace(row, offset=row.offset + 512) for row in rows]
    first = ClipIndex.open(tmp_path).hash
    write_index(tmp_path, moved, {})
    assert ClipIndex.open(tmp_path).row(4) == moved[4] and ClipIndex.open(tmp_path).hash == first
    assert len(list(tmp_path.iterdir())) == 2


def test_two_that_write_an_index_at_once_share_no_file(tmp_path):
    """A folder may be on a file system without locks; the last to finish wins, whole."""
    rows = some_rows(20)

    def beside() -> None:
        write_index(tmp_path, rows[:5], {})
        with GatheredRows(tmp_path, 0.5) as gathered:
            for row in rows[:7]:
                gathered.add(row)
            gathered.write_index({}, tmp_path)

    with GatheredRows(tmp_path, 0.5) as gathered:
        for row in rows:
            gathered.add(row)
        with IndexWriter(tmp_path, {}) as writer:
            writer.add(rows[0])
            other = multiprocessing.get_context("fork").Process(target=beside)
            other.start()
            other.join()
            assert other.exitcode == 0 and len(ClipIndex.open(tmp_path)) == 7
        assert ClipIndex.open(tmp_path).row(0) == rows[0] and len(ClipIndex.open(tmp_path)) == 1
        gathered.write_index({}, tmp_path)
    assert [ClipIndex.open(tmp_path).row(n) for n in range(20)] == rows
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_file_of_rows_is_named(tmp_path):
    write_index(tmp_path, some_rows(20), {})
    (beside,) = tmp_path.glob("*.rows")
    beside.write_bytes(b"no arrow")
    with pytest.raises(DataError, match=r"rows cannot be read .* delete it, and it is made again"):
        ClipIndex.open(tmp_path)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """One wrong bit, a sector of zeros, or the end cut off."""
    bad, place = bytearray(content), draw.randrange(len(content))
    match draw.randrange(6):
        case 0:
            bad[place : place + 512] = bytes(len(bad[place : place + 512]))
        case 1:
            del bad[place:]
        case _:
            bad[place] ^= 1 << draw.randrange(8)
    return bytes(bad)


def test_damage_of_a_file_of_rows_never_reaches_arrow(tmp_path):
    """Arrow believes lengths and offsets: wrong ones read beyond the file's memory, or end the process."""
    rows, draw = some_rows(BLOCK_ROWS + 5), random.Random(0)
    write_index(tmp_path, rows, {})
    (beside,) = tmp_path.glob("*.rows")
    good = beside.read_bytes()
    for _ in range(50):
        beside.write_bytes(bad := damaged(good, draw))
        if bad == good:
            continue
        with pytest.raises(DataError, match=r"rows cannot be read .* delete it, and it is made again"):
            index = ClipIndex.open(tmp_path)
            assert [index.row(n) for n in range(len(index))] != rows


def test_the_checksum_of_a_block_is_compared_at_the_first_reading(tmp_path, monkeypatch):
    rows, compared = some_rows(BLOCK_ROWS + 5), []
    write_index(tmp_path, rows, {})
    index = ClipIndex.open(tmp_path)
    monkeypatch.setattr(row_store, "crc32", lambda content: compared.append(len(content)) or crc32(content))
    for number in (3, BLOCK_ROWS + 1, 3, 4, BLOCK_ROWS + 1, 0):
        assert index.row(number) == rows[number]
    assert len(compared) == 2
    copy = pickle.loads(pickle.dumps(index))  # another process trusts nobody
    assert copy.row(3) == rows[3] and len(compared) == 4  # its table, and the block


def test_damage_of_an_index_is_refused_or_changes_nothing(tmp_path):
    rows, draw = some_rows(40), random.Random(0)
    write_index(tmp_path, rows, {"difficulty": "easy"})
    table, refused = tmp_path / "index.parquet", 0
    good = table.read_bytes()
    for _ in range(80):
        for beside in tmp_path.glob("index-*"):
            beside.unlink()  # so that it is made of the table
        table.write_bytes(damaged(good, draw))
        try:
            index = ClipIndex.open(tmp_path)
            assert [index.row(n) for n in range(len(index))] == rows and index.metadata == {"difficulty": "easy"}
        except DataError as error:
            refused += "\n" not in str(error) and "index.parquet cannot be read (" in str(error)
    assert refused > 60  # some hit what nobody reads


def test_an_index_replaced_while_in_use_is_noticed(tmp_path):
    write_index(tmp_path, some_rows(20), {})
    index = ClipIndex.open(tmp_path)
    write_index(tmp_path, some_rows(30), {})
    with pytest.raises(DataError, match="has 30 clips and had 20"):
        index.numbers("frames")
    assert index.row(3) == some_rows(4)[3]  # the rows that it opened


def test_opening_computes_no_hash(tmp_path, monkeypatch):
    write_index(tmp_path, some_rows(20), {})
    monkeypatch.setattr(index_writer, "blake2b", None)
    monkeypatch.setattr(json, "dumps", None)
    assert len(ClipIndex.open(tmp_path).hash) == 32


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), IndexWriter(tmp_path, {}) as writer:
        writer.add(row("a"))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_rows_are_written_as_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr(index_writer, "GROUP_ROWS", 10)
    ahead = []

    def rows():
        for number, one in enumerate(some_rows(35)):
            ahead.append(len(writer._pending))
            assert ahead[-1] == number % 10
            yield one

    with IndexWriter(tmp_path, {}) as writer:
        for one in rows():
            writer.add(one)
    assert len(ahead) == 35
    assert len(ClipIndex.open(tmp_path)) == 35 and pq.ParquetFile(tmp_path / "index.parquet").num_row_groups == 4


FLAT = """
import sys, psutil
from torch.utils.data import DataLoader, Dataset
from vidlab.data.storage.index import ClipIndex
from vidlab.data.samplers.assignment import Assignment, Bucket
from vidlab.data.samplers.single_bucket import SingleBucketPlan
class Rows(Dataset):
    def __init__(self, index):
        self.index, self.own = index, psutil.Process
        self.plan = SingleBucketPlan(Assignment.same(Bucket(8, 16, 16), len(index)), 16, 0)
    def __len__(self): return 3 * len(self.index) // 16
    def __getitem__(self, number):
        captions = [self.index.row(visit.position).captions[0] for visit in self.plan.batch(number)]
        own = self.own().memory_full_info().uss if number % 40 < 2 else None
        return len(set(captions)), self.own().pid, own
if __name__ == "__main__":
    data = Rows(ClipIndex.open(sys.argv[1]).select("train"))
    steps, last = len(data) // 3, {}
    for number, (captions, worker, own) in enumerate(DataLoader(data, batch_size=None, num_workers=2)):
        assert captions == 16
        if own is not None:
            last[worker, number // steps] = own
    workers = {worker for worker, _ in last}
    assert len(workers) == 2
    print("GROWTH", max(last[worker, 2] - last[worker, 0] for worker in workers))
"""


@pytest.mark.slow
def test_workers_do_not_grow_over_three_epochs(tmp_path):
    """Each worker's own memory from the end of the first epoch to that of the third."""
    clips = 9000
    write_index(tmp_path, some_rows(clips), {})
    run = subprocess.run([sys.executable, "-c", FLAT, str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split("GROWTH")[1]) < 1.5e6  # 9000 rows as Python objects are 10 MB


def test_the_path_of_an_index_may_be_text(tmp_path):
    write_index(Path(tmp_path), [row("a")], {})
    assert ClipIndex.open(str(tmp_path)).row(0) == row("a")
