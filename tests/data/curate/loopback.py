"""An OpenAI-compatible endpoint on this machine that does what it is told, good and bad."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Loopback:
    """What the endpoint does, and what it saw."""

    answer: Callable[[str], Any] = lambda text: caption_of(text)
    """From a description to the content of the message, or to a dict that replaces the reply's choice."""
    trouble: Callable[[str, int], Any] = lambda text, tries: None
    """From a description and how often it was asked before: None, a status, (status, headers, body) or a threading
    event, for which it waits without an answer."""
    key: str = "a-key"
    models: tuple[str, ...] = ("tiny",)
    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    """Requests by description."""
    answered: Counter[str] = field(default_factory=Counter)
    """Replies with status 200, by description: what is paid."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def caption_of(text: str) -> str:
    """The caption that the endpoint gives: nothing in it but what is in the description."""
    return f"Sound of {text.split(',')[0].split('.')[0].lower()}."


@contextmanager
def serve(loopback: Loopback) -> Iterator[Loopback]:
    """Serve until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            with loopback.lock:
                tries = loopback.asked[text]
                loopback.asked[text] += 1
                loopback.bodies.append(body)
                loopback.at_once += 1
                loopback.most_at_once = max(loopback.most_at_once, loopback.at_once)
            try:
                self._reply(body["model"], text, tries)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def _reply(self, model: str, text: str, tries: int) -> None:
            if self.headers.get("Authorization") != f"Bearer {loopback.key}":
                return self._send(401, {}, {"error": {"message": f"bad key {self.headers.get('Authorization')}"}})
            if model not in loopback.models:
                return self._send(404, {}, {"error": {"message": "no such model", "code": "model_not_found"}})
            trouble = loopback.trouble(text, tries)
            if isinstance(trouble, threading.Event):
                trouble.wait(20)
                self._end()
                self.close_connection = True
                return None
            if trouble is not None:
                status, headers, content = trouble if isinstance(trouble, tuple) else (trouble, {}, {"error": {}})
                return self._send(status, headers, content)
            with loopback.lock:
                loopback.answered[text] += 1
            answer = loopback.answer(text)
            choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
            if isinstance(answer, dict):
                choice |= answer
            else:
                choice["message"] = {"role": "assistant", "content": answer}
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            reply = {"id": "x", "object": "chat.completion", "created": 0, "model": model}
            return self._send(200, {}, reply | {"choices": [choice], "usage": usage})

        def _end(self) -> None:
            with loopback.lock:
                loopback.at_once -= 1

        def _send(self, status: int, headers: dict[str, str], content: Any) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self._end()
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    loopback.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield loopback
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
