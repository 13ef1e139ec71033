"""DSG-Video: a language model asks for the objects of captions, a multimodal one looks for them in frames."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from vidlab.chat.client import ChatClient, Refused
from vidlab.chat.messages import ChatRequest
from vidlab.errors import CorruptClipError
from vidlab.metrics.dsg.answers import answer_prompt, parse_answer
from vidlab.metrics.dsg.questions import ObjectQuestion, parse_questions, question_prompt
from vidlab.metrics.dsg.scores import CheckedCaption, CheckedObject

GROUP = 16  # captions whose frames are held at a time


@dataclass(frozen=True)
class CaptionOfFrames:
    """A caption to check.

    Args:
        key: of the clip.
        caption: the text.
        frames: makes PNG files of the frames in which objects are looked for.
    """

    key: str
    caption: str
    frames: Callable[[], Sequence[bytes]]


@dataclass
class _Search:
    """The objects of a caption that are looked for, and the answers so far."""

    of: CaptionOfFrames
    questions: list[ObjectQuestion]
    answers: dict[str, list[bool | None]] = field(default_factory=dict)

    def waiting(self) -> list[ObjectQuestion]:
        """Objects that no frame has shown."""
        return [one for one in self.questions if True not in self.answers.get(one.object, [])]

    def checked(self) -> CheckedCaption:
        objects = [CheckedObject(one.object, tuple(self.answers.get(one.object, []))) for one in self.questions]
        return CheckedCaption(self.of.key, self.of.caption, tuple(objects))


@dataclass(frozen=True)
class DSGVideo:
    """Finds hallucinated objects of captions (STIV, arXiv:2412.07730, appendix C.1, Figure 6).

    A language model lists the objects of each caption with a question for each. A multimodal model answers it for one
    frame after the other until one shows the object: those in the middle of the clip first. An object that every frame
    lacks is hallucinated.

    The paper says neither the prompts, the models nor how many frames are sampled; they are settings here.

    Args:
        language: asks the language model.
        vision: asks the multimodal model.
    """

    language: ChatClient
    vision: ChatClient

    def check(self, captions: Sequence[CaptionOfFrames]) -> Iterator[CheckedCaption]:
        """Each caption with its objects and what frames showed of them; in the order in which they are known.

        Raises:
            UserError: a server is not there or keeps failing; answers so far are kept.
        """
        requests = (ChatRequest(question_prompt(one.caption), (), one.key) for one in captions)
        searches = []
        for one, (_, answer) in zip(captions, self.language.answers(requests), strict=True):
            questions = None if isinstance(answer, Refused) else parse_questions(answer.text)
            if questions is None:
                told = answer.reason if isinstance(answer, Refused) else "its list of objects could not be read"
                yield CheckedCaption(one.key, one.caption, None, told)
            else:
                searches.append(_Search(one, questions))
        yield from self._looked_for(searches)

    def _looked_for(self, searches: Sequence[_Search]) -> Iterator[CheckedCaption]:
        """Look for the objects of some captions at a time, whose frames are held meanwhile."""
        for start in range(0, len(searches), GROUP):
            shown: list[tuple[_Search, Sequence[bytes]]] = []
            for search in searches[start : start + GROUP]:
                try:
                    shown.append((search, middle_first(search.of.frames())))
                except CorruptClipError as error:
                    yield CheckedCaption(search.of.key, search.of.caption, None, str(error))
            for number in range(max((len(frames) for _, frames in shown), default=0)):
                self._ask([(search, frames[number]) for search, frames in shown if number < len(frames)])
            yield from (search.checked() for search, _ in shown)

    def _ask(self, shown: Sequence[tuple[_Search, bytes]]) -> None:
        """Ask one frame of each clip for what no frame has shown yet."""
        asked = [(search, one, frame) for search, frame in shown for one in search.waiting()]
        requests = (ChatRequest(answer_prompt(one.question), (frame,), search.of.key) for search, one, frame in asked)
        for (search, one, _), (_, answer) in zip(asked, self.vision.answers(requests), strict=True):
            found = None if isinstance(answer, Refused) else parse_answer(answer.text)
            search.answers.setdefault(one.object, []).append(found)


def middle_first(frames: Sequence[bytes]) -> list[bytes]:
    """Frames by their distance from the middle one, where most is seen; of two equally far the earlier first."""
    middle = (len(frames) - 1) / 2
    return [frames[place] for place in sorted(range(len(frames)), key=lambda place: (abs(place - middle), place))]
