"""Captions by a vision-language model of transformers on this machine."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from typing_extensions import override

from vidlab.chat.journal import Answer, Journal, Usage
from vidlab.chat.messages import ChatRequest, identity
from vidlab.curation.captions.captioner import Captioner, Described, SourceClip, as_png
from vidlab.curation.captions.prompts import VIDEO
from vidlab.errors import CorruptClipError, UserError, first_line
from vidlab.hub import model_folder, refuse_code, without_bars

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
JOURNAL = "captions.answers.jsonl"


class VideoModelCaptioner(Captioner):
    """Shows frames in order to a local model that takes several pictures (LLaVA, Qwen2-VL, SmolVLM, InternVL, ...).

    Decoding is greedy. Answers are kept as they come, as those of a server are, since they cost time. Only safetensors
    weights are read and no code of the model's folder is run.

    Args:
        path: a folder with config.json, *.safetensors, a processor and a chat template; or a hub id.
        prompt: what is asked; None is Open-Sora Plan's instruction.
        frames: of each clip, spread evenly.
        longest_side: pixels to which larger frames are reduced, before the model's own processor.
        max_tokens: of a caption.
        dtype: in which the model computes.
        device: ``auto`` is a GPU where there is one.
        clean: take "This video shows ..." away.

    Raises:
        UserError: the folder is not set, not there or cannot be read, or a number is out of range.
    """

    def __init__(
        self,
        path: str | None = None,
        prompt: str | None = None,
        frames: int = 8,
        longest_side: int = 512,
        max_tokens: int = 512,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: str = "auto",
        clean: bool = True,
    ) -> None:
        if not path:
            raise UserError(
                "captioner.path is not set: give the folder of a vision-language model with its processor, or a hub id."
            )
        if min(frames, max_tokens) < 1 or longest_side < 16:
            raise UserError(
                f"captioner.frames={frames}, captioner.max_tokens={max_tokens}, captioner.longest_side={longest_side}: "
                "at least 1, 1 and 16."
            )
        self.path = path
        self.prompt = VIDEO if prompt is None else prompt
        self.frames, self.longest_side, self.max_tokens, self.clean = frames, longest_side, max_tokens, clean
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.processor, self.model = _load(path, getattr(torch, dtype), self.device)
        self._spent: dict[str, Usage] = {}

    @property
    @override
    def source(self) -> str:
        return Path(self.path).name

    @override
    def spent(self) -> Mapping[str, Usage]:
        return dict(self._spent)

    @override
    def describe(self, clips: Iterable[SourceClip], folder: Path) -> Iterator[Described]:
        self._spent = {self.source: Usage()}
        with Journal(folder / JOURNAL) as journal:
            for clip in clips:
                try:
                    pictures = [as_png(frame, self.longest_side) for frame in clip.frames(self.frames)]
                except CorruptClipError as error:
                    yield Described(clip, [], str(error))
                    continue
                answer = self._answer(ChatRequest(self.prompt, pictures, clip.row.key), journal)
                yield Described.by_model(clip, answer, self.source, self.clean)

    def _answer(self, request: ChatRequest, journal: Journal) -> Answer:
        # folders of one name hold different models
        key = identity(str(Path(self.path).resolve()), {"messages": request.messages(), "max_tokens": self.max_tokens})
        found = journal.get(key)
        if found is None:
            found = self._generated(request)
            self._spent[self.source] += found.usage
            journal.put(key, found, request.about)
        return found

    @torch.inference_mode()
    def _generated(self, request: ChatRequest) -> Answer:
        import io

        from PIL import Image

        pictures = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in request.pictures]
        content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
        turn = [{"role": "user", "content": [*content, {"type": "text", "text": request.text}]}]
        inputs = self.processor.apply_chat_template(
            turn, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.device, self.model.dtype)
        asked = inputs["input_ids"].shape[1]
        made = self.model.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False)[0, asked:].tolist()
        text = self.processor.decode(made, skip_special_tokens=True).strip()
        return Answer(text, self.source, Usage(1, asked, len(made)), len(made) < self.max_tokens)


def _load(path: str, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """The processor and the model of a folder."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = model_folder(path, "captioner.path", FILES, lambda found: any(found.glob("*.safetensors")))
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise UserError(f"captioner.path={path}: {folder} needs config.json and *.safetensors weights.")
    refuse_code(folder, "captioner.path")
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with without_bars():
            processor = AutoProcessor.from_pretrained(folder, **local)
            model = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, dtype=dtype, **local)
    except Exception as error:  # a strange configuration raises wherever the library first stumbles over it
        reason = first_line(error)
        raise UserError(f"captioner.path={path}: {folder} is no readable vision-language model: {reason}") from error
    if not getattr(processor, "chat_template", None):
        raise UserError(f"captioner.path={path}: its processor has no chat template, so nothing can be asked of it.")
    return processor, model.eval().requires_grad_(False).to(device)
