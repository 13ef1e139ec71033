"""What a stage of curation is: one that measures and reads video, or one that decides and reads none."""

import ast
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import Any, ClassVar

from vidlab.curation.engine.records import Clip, Measurement
from vidlab.curation.engine.video_file import VideoFile
from vidlab.errors import UserError


class Stage(ABC):  # noqa: B024  a stage is one of its kinds below
    """One stage: a frozen dataclass whose fields are its settings. It must survive being sent to another process.

    Its results are kept under ``version``, which changes with its settings, the code of its module and its weights.

    Attributes:
        not_in_version: fields that change no result, such as the place of weights.
    """

    not_in_version: ClassVar[tuple[str, ...]] = ()

    def weights(self) -> Sequence[str]:
        """Digests of the weights that it computes with."""
        return ()

    def check(self, key: str) -> None:  # noqa: B027  most have nothing to check
        """Refuse, before anything is read, settings or missing files and packages with which it cannot work.

        Args:
            key: its full configuration key, for the message.

        Raises:
            UserError: naming the key.
        """

    def version(self) -> str:
        """A digest of everything that its results depend on besides the clips."""
        settings: dict[str, Any] = {}
        if is_dataclass(self):
            settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.not_in_version}
        what = [type(self).__qualname__, _code(type(self)), settings, list(self.weights())]
        return sha1(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Measure(Stage):
    """Measures clips and changes nothing else of them; a clip that was measured before is not read again.

    Attributes:
        uses: scores of earlier stages that it builds on; where they are others, a clip is measured again.
    """

    uses: ClassVar[tuple[str, ...]] = ()

    def depends_on(self, clip: Clip) -> tuple[object, ...]:
        """All that its measurement of a clip follows from, besides its version."""
        return clip.id, *(clip.scores.get(name) for name in self.uses)

    @property
    @abstractmethod
    def provides(self) -> tuple[str, ...]:
        """Names of the scores and series that it measures."""

    @abstractmethod
    def measure(self, video: VideoFile, clips: Sequence[Clip]) -> Sequence[Measurement]:
        """Scores and series of clips of one video, in their order.

        Raises:
            CorruptClipError: the video cannot be read; it is tried again, then rejected by name.
        """


class Decision(Stage):
    """Decides from what was measured: keeps, rejects, crops or cuts clips. It reads no video."""

    @abstractmethod
    def decide(self, clip: Clip, step: str) -> Sequence[Clip]:
        """What becomes of a clip that is in: itself, changed or rejected, or its parts, in order.

        Args:
            clip: with the scores and series of the stages before.
            step: the name under which it is rejected.
        """


class SharedDecision(Stage):
    """What a decision is made of once all clips are known, such as one that keeps a share of them."""

    @property
    @abstractmethod
    def gathers(self) -> str:
        """Name of the score that is gathered."""

    @abstractmethod
    def fitted(self, values: Sequence[float]) -> Decision:
        """The decision for clips that have these scores, in ascending order."""


class Opening(Stage):
    """The first stage: what a video file is."""

    @abstractmethod
    def open(self, video: VideoFile) -> Clip:
        """The clip that is the whole of a video.

        Raises:
            CorruptClipError: it cannot be read.
        """


def check_given(key: str, path: Path | None, what: str, inside: str = "") -> None:
    """Refuse a path that is not set or not there.

    Args:
        key: its full configuration key.
        path: what was given.
        what: it should be, for the message.
        inside: a file that it must hold, where it is a folder.

    Raises:
        UserError: naming the key, and the step to leave out.
    """
    if path is not None and (path / inside).is_file():
        return
    told = " is not set" if path is None else f"={path}: it is not there"
    step = key.rpartition(".")[0].partition(".measure")[0]
    raise UserError(f"{key}{told}. Give {what}, or leave the step out with {step}=null.")


@cache
def _code(kind: type) -> str:
    """A digest of a class's module that comments and layout do not change."""
    file = inspect.getsourcefile(kind)
    if file is None:
        return ""
    return sha1(ast.dump(ast.parse(Path(file).read_text("utf-8"))).encode()).hexdigest()
