"""Tables, lists and records that name videos and say what they show."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from ..edits import TEXTS, Edit, hostile, in_json
from ..target import Subject, Target
from .media import small_video
from .sets import CLIPS, indexed

Rows = list[dict[str, Any]]
CELLS = (*TEXTS, "b" * 200_000, "[" * 3000, "['a', 1", "__import__('os').abort()", "{'a': 1}", "0:00:99.9", "1:2:3:4")


def written_csv(rows: Rows) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(rows[0])
    writer.writerows([*row.values()] for row in rows)
    return file.getvalue().encode("utf-8", "surrogatepass")


def written_parquet(rows: Rows) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), file)
    return file.getvalue()


def in_row(number: int) -> Edit:
    """A cell of one row by something hostile, or a row that is short or long; the table stays a sound CSV file."""

    def change(random: Random, data: bytes) -> tuple[bytes, str]:
        csv.field_size_limit(1 << 30)
        try:
            table = list(csv.reader(io.StringIO(data.decode("utf-8", "surrogatepass"), newline="")))
        finally:
            csv.field_size_limit(131072)
        if len(table) <= number + 1 or not table[number + 1]:
            return data, "nothing"
        row, what = table[number + 1], random.choice(("cell", "cell", "cell", "short", "long"))
        if what == "cell":
            cell = random.randrange(len(row))
            value = random.choice(CELLS) if random.random() < 0.7 else str(hostile(random))[:300_000]
            row[cell] = value
            what = f"cell {cell} of row {number} is {value[:40]!r}"
        elif what == "short":
            del row[random.randrange(1, max(len(row), 2)) :]  # without a cell it would be a blank line
        else:
            row += ["more"] * random.choice((1, 100))
        file = io.StringIO(newline="")
        csv.writer(file).writerows(table)
        return file.getvalue().encode("utf-8", "surrogatepass"), what

    return change


def in_item(number: int) -> Edit:
    """One item of a JSON list by something hostile."""

    def change(random: Random, data: bytes) -> tuple[bytes, str]:
        try:
            items = json.loads(data)
            one, said = in_json(random, json.dumps(items[number]).encode())
            texts = [json.dumps(item).encode() for item in items]
            json.loads(one)  # brackets without end would make the whole list none
        except (ValueError, IndexError, RecursionError):
            return data, "nothing"
        texts[number] = one
        return b"[" + b",\n".join(texts) + b"]", f"item {number}: {said}"

    return change


def table_target(
    name: str,
    file: str,
    rows: Rows,
    keys: Sequence[str],
    source: Callable[[Path], Any],
    write: Callable[[Rows], bytes] = written_csv,
    one: Callable[[int], Edit] | None = in_row,
    whole: str = "text",
    beside: Callable[[Path], Sequence[Subject]] = lambda folder: (),
) -> Target:
    """A list with a row per video; each row is damaged alone, and the whole."""

    def make(folder: Path) -> Sequence[Subject]:
        for number, key in enumerate(keys):
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(small_video(number))
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(write(rows))
        subjects = [Subject(file, whole, countable=False, nodes=True)] * CLIPS
        for number, key in enumerate(keys) if one else ():
            subjects.append(Subject(file, (one(number),), frozenset([key])))
        videos = [Subject(key, "mp4", frozenset([key]), nodes=True) for key in keys[:1]]
        return [*subjects, *videos, *beside(folder)]

    return Target(f"table.{name}", make, lambda folder: indexed(source(folder)))


def _folder(folder: Path) -> Any:
    from vidlab.data.datasets.folder import FolderSource

    return FolderSource(str(folder))


def _published(name: str, **settings: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        from vidlab.data.datasets import panda70m as panda
        from vidlab.data.datasets import published

        kind = getattr(published, name, None) or getattr(panda, name)
        return kind(str(folder), **settings)

    return make


FOLDER = [{"file": f"c{n}.mp4", "caption": f'a red, "quoted" clip {n}', "id": n} for n in range(CLIPS)]
LISTED = [{"file": f"c{n}.mp4", "caption": [f"clip {n}", "again"]} for n in range(CLIPS)]
WEBVID = [
    {
        "videoid": str(n),
        "contentUrl": "http://x",
        "duration": "PT00H00M04S",
        "page_dir": "000001_000050",
        "name": f"clip {n}",
    }
    for n in range(CLIPS)
]
OPENVID = [
    {"video": f"c{n}.mp4", "caption": f"clip {n}", "aesthetic score": "5.1", "motion score": "1.5",
     "temporal consistency score": "0.9", "camera motion": "still", "frame": "4", "fps": "8.0", "seconds": "0.5"}
    for n in range(CLIPS)
]  # fmt: skip
PANDA = [
    {"videoID": f"id{n}", "url": f"https://www.youtube.com/watch?v=id{n}",
     "timestamp": "[['0:00:00.000', '0:00:04.000']]",
     "caption": f"['the caption {n}']", "matching_score": "[0.45]"}
    for n in range(CLIPS)
]  # fmt: skip
PANDA_KEYS = [f"00000/{n:07d}_00000.mp4" for n in range(CLIPS)]
PLANS = [{"path": f"c{n}.mp4", "cap": [f"clip {n}"], "aes": 5.0, "fps": 8.0, "num_frames": 4,
          "resolution": {"height": 16, "width": 16}} for n in range(CLIPS)]  # fmt: skip
ACTIONS = ("ApplyEyeMakeup", "Archery", "BabyCrawling", "Basketball")
UCF = [f"{name}/v_{name}_g0{n + 1}_c01.avi" for n, name in enumerate(ACTIONS)]


def panda_beside(folder: Path) -> Sequence[Subject]:
    subjects = []
    for number, key in enumerate(PANDA_KEYS):
        path = (folder / key).with_suffix("")
        path.with_suffix(".txt").write_text(f"beside {number}")
        record = {"videoID": f"id{number}", "url": PANDA[number]["url"], "clip": [0]}
        path.with_suffix(".json").write_text(json.dumps(record))
        own = frozenset([key])
        for suffix, edits in ((".txt", "text"), (".json", "json")):
            file = path.with_suffix(suffix).relative_to(folder).as_posix()
            subjects.append(Subject(file, edits, own, nodes=True))
    return subjects


def panda_alone(folder: Path) -> Sequence[Subject]:
    """Clips as they were downloaded, without a table."""
    for number, key in enumerate(PANDA_KEYS):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(small_video(number))
    return panda_beside(folder)


def ucf_lists(rows: Rows) -> bytes:
    return "".join(f"{row['clip']} {n + 1}\n" for n, row in enumerate(rows)).encode()


def ucf_test(folder: Path) -> Sequence[Subject]:
    (folder / "ucfTrainTestlist" / "testlist01.txt").write_text(f"{UCF[0]}\n")
    return [Subject("ucfTrainTestlist/testlist01.txt", "text", countable=False, nodes=True)]


def plan_target() -> Target:
    def make(folder: Path) -> Sequence[Subject]:
        (folder / "one").mkdir()
        for number in range(CLIPS):
            (folder / "one" / f"c{number}.mp4").write_bytes(small_video(number))
        (folder / "one.json").write_bytes(json.dumps(PLANS).encode())
        (folder / "data.txt").write_text("one,one.json\n")
        lists = [Subject("data.txt", "text", countable=False, nodes=True), Subject("one.json", "json", countable=False)]
        items = [Subject("one.json", (in_item(n),), frozenset([f"one/c{n}.mp4"])) for n in range(CLIPS)]
        return [*lists, *items, Subject("one/c0.mp4", "mp4", frozenset(["one/c0.mp4"]), nodes=True)]

    return Target("table.open_sora_plan_lists", make, lambda folder: indexed(_published("OpenSoraPlanList")(folder)))


def as_json(rows: Rows) -> bytes:
    return json.dumps(rows, indent=1).encode()


NAMES = [f"c{n}.mp4" for n in range(CLIPS)]
TARGETS = (
    table_target("folder_csv", "captions.csv", FOLDER, NAMES, _folder),
    table_target("folder_parquet", "captions.parquet", FOLDER, NAMES, _folder, written_parquet, None, "footed"),
    table_target("folder_parquet_lists", "captions.parquet", LISTED, NAMES, _folder, written_parquet, None, "footed"),
    table_target("webvid", "results_10M_train.csv", WEBVID, [f"videos/000001_000050/{n}.mp4" for n in range(CLIPS)],
                 _published("WebVid")),
    table_target("openvid", "OpenVid-1M.csv", OPENVID, [f"video/c{n}.mp4" for n in range(CLIPS)],
                 _published("OpenVid", min_motion=0.5)),
    table_target("panda", "panda.csv", PANDA, PANDA_KEYS, _published("Panda", annotation="panda.csv"),
                 beside=panda_beside),
    Target("table.panda_downloaded", panda_alone, lambda folder: indexed(_published("Panda")(folder))),
    table_target("ucf101", "ucfTrainTestlist/trainlist01.txt", [{"clip": clip} for clip in UCF[1:]],
                 [f"UCF-101/{clip}" for clip in UCF], _published("UCF101"), ucf_lists, None, beside=ucf_test),
    table_target("open_sora_plan", "plan.json", PLANS, NAMES, _published("OpenSoraPlanList"), as_json, in_item, "json"),
    plan_target(),
)  # fmt: skip
