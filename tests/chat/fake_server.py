"""A small OpenAI-compatible server in this process: a fake, whose models are named so in everything that is written."""

import base64
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "fake-key-that-nobody-may-see"
Reply = tuple[int, Any] | str


class FakeServer:
    """Answers with what a function makes of (model, text, pictures); counts and keeps what it was sent."""

    def __init__(self, answer: Callable[[str, str, list[bytes]], Reply]) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "FakeServer":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._http.shutdown()
        self._http.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self.lock:
            self.asked.append(body)
            self.keys.append(request.headers.get("Authorization"))
        text, pictures = _content(body["messages"][0]["content"])
        reply = self.answer(body["model"], text, pictures) if request.path == "/v1/chat/completions" else (404, "no")
        status, content = (200, _chat(body["model"], reply)) if isinstance(reply, str) else reply
        data = json.dumps(content).encode()
        request.send_response(status)
        for name, value in (content.get("headers", {}) if isinstance(content, dict) else {}).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)


def _content(content: Any) -> tuple[str, list[bytes]]:
    if isinstance(content, str):
        return content, []
    pictures = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    text = next(part["text"] for part in content if part["type"] == "text")
    return text, [base64.b64decode(picture.partition("base64,")[2]) for picture in pictures]


def _chat(model: str, text: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 10, "completion_tokens": len(text.split())}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"model": model, "choices": [choice], "usage": usage}
