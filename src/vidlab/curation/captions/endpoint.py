"""Captions by a multimodal model behind an OpenAI-compatible server."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from typing_extensions import override

from vidlab.chat.client import ChatClient, Refused
from vidlab.chat.endpoint import Endpoint
from vidlab.chat.journal import Journal, Usage
from vidlab.chat.messages import ChatRequest
from vidlab.curation.captions.captioner import Captioner, Described, SourceClip, as_png
from vidlab.curation.captions.prompts import VIDEO
from vidlab.errors import CorruptClipError, UserError

JOURNAL = "captions.answers.jsonl"


class EndpointCaptioner(Captioner):
    """Shows a model some frames of each clip and asks for a description, with Open-Sora Plan's instruction by default.

    Args:
        endpoint: the server; also where its key comes from and how many requests are in flight.
        prompt: what is asked; None is the published instruction.
        frames: of each clip, spread evenly, in order.
        longest_side: pixels to which larger frames are reduced.
        clean: take "This video shows ..." away, as Open-Sora Plan does.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        prompt: str | None = None,
        frames: int = 8,
        longest_side: int = 512,
        clean: bool = True,
    ) -> None:
        if frames < 1 or longest_side < 16:
            raise UserError(f"captioner.frames={frames}, captioner.longest_side={longest_side}: at least 1 and 16.")
        self.endpoint = endpoint
        self.prompt = VIDEO if prompt is None else prompt
        self.frames = frames
        self.longest_side = longest_side
        self.clean = clean
        self._spent: dict[str, Usage] = {}

    @property
    @override
    def source(self) -> str:
        return self.endpoint.source

    @override
    def spent(self) -> Mapping[str, Usage]:
        return dict(self._spent)

    @override
    def describe(self, clips: Iterable[SourceClip], folder: Path) -> Iterator[Described]:
        unread: dict[str, str] = {}
        asked: dict[str, SourceClip] = {}
        with Journal(folder / JOURNAL) as journal:
            client = ChatClient(self.endpoint, journal)
            try:
                for request, answer in client.answers(self._requests(clips, asked, unread)):
                    clip = asked.pop(request.about)
                    if isinstance(answer, Refused):
                        yield Described(clip, [], f"refused by the server: {answer.reason}")
                        continue
                    yield Described.by_model(clip, answer, self.source, self.clean)
            finally:
                self._spent = {self.source: client.spent}
        for key, reason in unread.items():
            yield Described(asked[key], [], reason)

    def _requests(
        self, clips: Iterable[SourceClip], asked: dict[str, SourceClip], unread: dict[str, str]
    ) -> Iterator[ChatRequest]:
        for clip in clips:
            asked[clip.row.key] = clip
            try:
                pictures = [as_png(frame, self.longest_side) for frame in clip.frames(self.frames)]
            except CorruptClipError as error:
                unread[clip.row.key] = str(error)
                continue
            yield ChatRequest(self.prompt, pictures, clip.row.key)
