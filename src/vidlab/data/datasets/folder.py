"""A folder of videos with captions beside them, used where it is: nothing is copied."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from vidlab.assets import cache_folder
from vidlab.command_line import setting, shell_word
from vidlab.data.datasets.annotation import Annotation, row_or_reason
from vidlab.data.datasets.base import fingerprint, prepare_once
from vidlab.data.datasets.folder_captions import gather_captions, text_beside
from vidlab.data.datasets.splits import GatheredRows
from vidlab.data.names import is_file, shown, walk_files
from vidlab.data.remarks import Remarks, sentences
from vidlab.data.storage.clip_row import ClipRow
from vidlab.data.tables.files import TABLE_SUFFIXES
from vidlab.data.video import DecodeLimits
from vidlab.errors import DataError, UserError

VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".avi", ".mkv", ".gif")

# Raise when the index of an unchanged folder would come out different.
VERSION = 2


@dataclass(frozen=True)
class FolderSource:
    """Every video under a folder that has a caption.

    Videos are found at any depth (.mp4 .webm .mov .avi .mkv .gif), in folders behind symbolic links too; hidden files
    and folders are passed over. Captions come from ``clip.txt`` beside ``clip.mp4``, each non-empty line being one
    caption, or from one table at the top of the folder with a column ``file``, ``video`` or ``path`` and a column
    ``caption`` or ``text``; several rows for one video are several captions, and a table's captions go before a text
    file's.
    A table names a video by its path under the folder, with or without suffix, or by its bare file name when
    only one video has it; accents may be written as one character or as two. A cell of a Parquet table may be a list of
    captions.

    Videos that cannot be read, whose text file is not UTF-8 or whose own name is not, and rows of the table that cannot
    be used are named in the index, counted, and refused beyond ``data.max_corrupt``.

    The videos are read in place; only an index is written to the cache, under a hash of all names, sizes and
    change times. Which clips are held out depends on their names alone, so adding clips moves none from one
    side to the other, save that both sides get at least one clip.

    Args:
        path: the folder.
        cache_dir: where the index is kept; None is the vidlab cache.
        val_fraction: share of clips held out for validation, between 0 and 1.
        captions: the table's path, relative to ``path``; None looks for the only .csv or .parquet at its top.
        name: name of the data set in logs.
        max_megapixels: millions of pixels that a frame may have.

    Raises:
        UserError: when ``path`` or ``captions`` does not name what it should.
        DataError: when the folder has no usable videos, or fewer than 2.
    """

    path: str | None
    cache_dir: str | None = None
    val_fraction: float = 0.1
    captions: str | None = None
    name: str = "folder"
    max_megapixels: float = 64

    def prepare(self) -> Path:
        """The folder of the index; the videos are probed on first use and whenever one changed."""
        folder = self._folder()
        videos = find_videos(folder)
        if not videos:
            raise DataError(f"data.path={folder}: no video found (looked for {' '.join(VIDEO_SUFFIXES)})")
        table = self._table(folder)
        beside = [text for video in videos if (text := text_beside(video)) is not None]
        files = [*videos, *beside, *([table] if table else [])]
        digest = fingerprint((VERSION, folder, self.val_fraction, self.max_megapixels), files)
        cache = cache_folder(self.cache_dir)
        target = cache / "folder" / f"{folder.name}-{digest}"
        return prepare_once(target, lambda made: self._build(made, folder, videos, table))

    def raw_videos(self) -> tuple[Path, dict[Path, tuple[str, ...]]]:
        """The folder, and every video below it with its captions, of which it may have none; nothing is read of it.

        Raises:
            DataError: there is no video.
        """
        folder = self._folder()
        videos = find_videos(folder)
        if not videos:
            raise DataError(f"data.path={folder}: no video found (looked for {' '.join(VIDEO_SUFFIXES)})")
        found = gather_captions(folder, videos, self._table(folder), self.path).captions
        return folder, {video: tuple(found.get(video, ())) for video in videos}

    def _folder(self) -> Path:
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.source.val_fraction={self.val_fraction}: it must lie between 0 and 1")
        if not self.path:
            raise UserError("data.path is not set: give a folder of videos, data.path=/my/videos")
        folder = Path(self.path).expanduser().resolve()
        if not folder.exists():
            raise UserError(f"data.path={self.path}: no such folder ({folder})")
        if not folder.is_dir():
            raise UserError(f"data.path={self.path}: this is a {_instead_of(folder)}")
        return folder

    def _table(self, folder: Path) -> Path | None:
        if self.captions is None:
            tables = tables_of(folder)
            if len(tables) > 1:
                names = ", ".join(shown(table.name) for table in tables)
                raise UserError(
                    f"data.path={folder} holds several tables ({names}): name one, data.source.captions=..."
                )
            return tables[0] if tables else None
        table = folder / self.captions
        if not table.is_file() or table.suffix.lower() not in TABLE_SUFFIXES:
            raise UserError(f"data.source.captions={self.captions}: no .csv or .parquet file at {table}")
        return table

    def _build(self, made: Path, folder: Path, videos: list[Path], table: Path | None) -> None:
        from rich.progress import track

        found = gather_captions(folder, videos, table, self.path)
        rejected, remarks = dict(found.rejected), Remarks()
        captioned = [video for video in videos if found.captions.get(video)]
        without = len(videos) - len(captioned) - sum(video in found.unread for video in videos)
        limits = DecodeLimits(self.max_megapixels)
        with GatheredRows(made, self.val_fraction) as rows:
            for video in track(captioned, description=f"Reading {shown(folder.name)}", transient=True):
                key = video.relative_to(folder).as_posix()
                read = row_or_reason(folder, Annotation(key, tuple(found.captions[video])), limits)
                if isinstance(read, str):
                    rejected[shown(key)] = read
                else:
                    remarks.add(key, read.remarks)
                    rows.add(read.row)
            for key, reason in list(rejected.items())[:10]:
                rank_zero_warn(f"data.path={folder}: {key} left out: {reason}")
            if without:
                rank_zero_warn(f"data.path={folder}: {without} of {len(videos)} videos have no caption: left out")
            for remark in sentences(remarks.metadata()):
                rank_zero_warn(f"data.path={folder}: {remark}")
            if rows.count < 2:
                raise DataError(_too_few(folder, rows.first, rejected, without))
            rank_zero_info(f"data.path={folder}: {rows.count} clips indexed, {len(rejected)} unreadable")
            metadata = {"videos": len(videos), "without_caption": without, "rejected": rejected}
            metadata |= remarks.metadata()
            rows.write_index(metadata, root=folder)


def _instead_of(file: Path) -> str:
    """What a file is, and what to give in its place."""
    place = setting("data.path", file.parent)
    if file.suffix.lower() not in TABLE_SUFFIXES:
        return f"file; give the folder that holds the videos: {shell_word(place)}"
    typed = " ".join(map(shell_word, ("data=folder", place, setting("data.source.captions", file.name))))
    return (
        f"table; give the folder of its videos and the table in it: {typed} (with videos in another folder, that as "
        f"data.path, and {shell_word(setting('data.source.captions', file))})"
    )


def find_videos(folder: Path) -> list[Path]:
    """Every video file under ``folder``, sorted; folders behind symbolic links count, hidden ones do not.

    Names of videos that are no files, such as links whose target is gone, are counted in a warning.
    """
    named = sorted(path for path in walk_files(folder) if path.suffix.lower() in VIDEO_SUFFIXES)
    videos = [path for path in named if is_file(path)]
    if len(videos) < len(named):
        first = next(path for path in named if not is_file(path))
        rank_zero_warn(
            f"{folder}: {len(named) - len(videos)} of {len(named)} videos are no files that can be read, such as links "
            f"whose target is gone, and are left out, first {shown(first.relative_to(folder))}"
        )
    return videos


def tables_of(folder: Path) -> list[Path]:
    """The tables at the top of a folder, sorted; hidden ones are passed over."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in TABLE_SUFFIXES)
    return sorted(file for file in files if is_file(file) and not file.name.startswith("."))


def _too_few(folder: Path, only: ClipRow | None, rejected: Mapping[str, str], without: int) -> str:
    """What to tell someone whose folder holds fewer than two usable clips."""
    start = f"data.path={folder}: "
    if only is None and not rejected:
        return start + (
            f"none of the {without} videos has a caption; put it into clip.txt beside clip.mp4, or into a "
            "table (.csv or .parquet) at the top of the folder with the columns file and caption"
        )
    bad = "".join(f"; {key}: {reason}" for key, reason in list(rejected.items())[:3])
    count = "no video is" if only is None else f"only {only.key} is"
    return f"{start}{count} usable, and 2 are needed (1 to train on, 1 held out). No caption: {without}{bad}"
