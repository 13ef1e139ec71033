"""What is sent to a chat model: text and pictures, as the body of a request."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any


@dataclass(frozen=True)
class ChatRequest:
    """One question.

    Args:
        text: what is asked.
        pictures: PNG files that are shown before the text, in order.
        about: what it is asked of, such as the key of a clip, for the journal and for messages.
    """

    text: str
    pictures: Sequence[bytes] = ()
    about: str = ""

    def messages(self) -> list[dict[str, Any]]:
        """In the form of OpenAI's chat completions; a text alone is a plain string, which every server takes."""
        if not self.pictures:
            return [{"role": "user", "content": self.text}]
        shown = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(picture).decode()}"}}
            for picture in self.pictures
        ]
        return [{"role": "user", "content": [*shown, {"type": "text", "text": self.text}]}]


def identity(address: str, body: Mapping[str, Any]) -> str:
    """The SHA-256 of a request, hexadecimal: what is asked, and of whom. The address must hold no password."""
    text = json.dumps([address, body], sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()
