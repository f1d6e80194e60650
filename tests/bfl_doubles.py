"""A server that speaks the BFL API over real loopback HTTP: in the shapes that were recorded, or badly, as it is told.

Left alone it renders: a request is Pending, Pending at half, then Ready, and its signed link delivers a PNG that shows
what was asked for. `script` puts replies of any kind before that.
"""

import hashlib
import io
import json
import sys
import threading
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from PIL import Image, ImageDraw

KEY = "bfl_w7Q2mXkP4vTzR9cJ"

Kind = Literal["submit", "poll", "sample", "account", "connect"]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request as it arrived; `path` is what stood on the request line."""

    kind: Kind
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer. `cut` ends the connection in the middle of it; `silent` says nothing until the double closes."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    silent: bool = False


CUT = Reply(cut=True, body={"id": "half"})
SILENT = Reply(silent=True)


class BflDouble:
    """Starts at once; use it as a context manager. `limit` is how many tasks may be active."""

    def __init__(self, *, key: str | None = KEY, limit: int = 24) -> None:
        self.key = key
        self.limit = limit
        self.calls: list[Call] = []
        self.bodies: dict[str, dict[str, Any]] = {}
        self.active: set[str] = set()
        self.peak = 0
        self.finetunes: dict[str, dict[str, Any]] = {}
        """Details by id; BFL's say neither digest nor endpoint."""
        self.hold_from: int | None = None
        """From which task on, counted from 0, tasks stay Pending."""
        self.hold = False
        """Whether tasks stay Pending."""
        self._polls: dict[str, int] = {}
        self._scripts: dict[Kind, deque[Reply]] = {kind: deque() for kind in ("submit", "poll", "sample", "account")}
        self._always: dict[Kind, Reply] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                double._answer(self, "submit")

            def do_GET(self) -> None:
                kinds: dict[str, Kind] = {"/v1/get_result": "poll", "/v1/my_finetunes": "account"}
                kinds["/v1/finetune_details"] = "account"
                double._answer(self, kinds.get(urlsplit(self.path).path, "sample"))

            def do_CONNECT(self) -> None:
                double._answer(self, "connect")

            def log_message(self, *_args: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "BflDouble":
        return self

    def __exit__(self, *_error: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def script(self, kind: Kind, *replies: Reply) -> None:
        """Answer the next calls of this kind so, one each."""
        self._scripts[kind].extend(replies)

    def always(self, kind: Kind, reply: Reply) -> None:
        """Answer every call of this kind so."""
        self._always[kind] = reply

    def count(self, kind: Kind) -> int:
        return sum(call.kind == kind for call in self.calls)

    def of(self, kind: Kind) -> list[Call]:
        return [call for call in self.calls if call.kind == kind]

    def _answer(self, handler: BaseHTTPRequestHandler, kind: Kind) -> None:
        size = int(handler.headers.get("content-length") or 0)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        call = Call(kind=kind, path=handler.path, headers=headers, body=handler.rfile.read(size))
        with self._lock:
            self.calls.append(call)
            reply = self._choose(call)
        if reply.silent:
            self._closing.wait()
            handler.close_connection = True
            return
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        for name, value in {"content-type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2] if reply.cut else data)
        handler.close_connection = handler.close_connection or reply.cut

    def _choose(self, call: Call) -> Reply:
        if self._scripts.get(call.kind):
            return self._scripts[call.kind].popleft()
        if call.kind in self._always:
            return self._always[call.kind]
        match call.kind:
            case "submit":
                return self._submit(call)
            case "poll":
                return self._poll(call)
            case "sample":
                return self._sample(call)
            case "account":
                return self._account(call)
        return Reply(status=502)

    def _submit(self, call: Call) -> Reply:
        if self.key is not None and call.headers.get("x-key") != self.key:
            return Reply(status=403, body={"detail": "Not authenticated - Invalid Authentication"})
        if len(self.active) >= self.limit:
            return Reply(status=429, body={"detail": "Too many active tasks"})
        task = str(uuid.uuid4())
        self.bodies[task] = call.json
        self.active.add(task)
        self.peak = max(self.peak, len(self.active))
        return Reply(body=self.submitted(task))

    def _account(self, call: Call) -> Reply:
        if self.key is not None and call.headers.get("x-key") != self.key:
            return Reply(status=403, body={"detail": "Not authenticated"})
        asked = parse_qs(urlsplit(call.path).query).get("finetune_id")
        if asked is None:
            return Reply(body={"finetunes": list(self.finetunes)})
        return Reply(body={"finetune_details": self.finetunes[asked[0]]})

    def submitted(self, task: str, **changes: Any) -> dict[str, Any]:
        """The answer to a submit; megapixels and cost as once recorded for another model."""
        polling_url = f"{self.origin}/v1/get_result?id={task}"
        return {"id": task, "polling_url": polling_url, "cost": 4.5, "input_mp": 0, "output_mp": 1.98, **changes}

    def _poll(self, call: Call) -> Reply:
        task = parse_qs(urlsplit(call.path).query)["id"][0]
        if task not in self.bodies:
            return Reply(body=polled(task, "Task not found"))
        seen = self._polls[task] = self._polls.get(task, 0) + 1
        held = self.hold or (self.hold_from is not None and list(self.bodies).index(task) >= self.hold_from)
        if held or seen < 3:
            return Reply(body=polled(task, "Pending", progress=None if seen == 1 else 0.5))
        self.active.discard(task)
        return Reply(body=self.ready(task))

    def ready(self, task: str, **changes: Any) -> dict[str, Any]:
        """The answer about a task that is Ready, as recorded in January 2025 but for host and file type."""
        asked = self.bodies[task]
        sample = (
            f"{self.origin}/results/{task.replace('-', '')}/sample.png"
            f"?id={task}&se=2025-01-09T05%3A04%3A04Z&sp=r&sv=2024-11-04&sr=b&rsct=image/png&sig=a%2Fb%2Bc%3D"
        )
        result = {
            "sample": sample,
            "prompt": asked["prompt"],
            "seed": asked["seed"],
            "start_time": 1736398441.63,
            "end_time": 1736398444.37,
            "duration": 0.001,
            **changes,
        }
        return polled(task, "Ready", result=result)

    def _sample(self, call: Call) -> Reply:
        query = parse_qs(urlsplit(call.path).query)
        if query.get("sig") != ["a/b+c="] or "x-key" in call.headers:
            return Reply(status=403, body=b"<Error><Code>AuthenticationFailed</Code></Error>")
        return Reply(body=draw(self.bodies[query["id"][0]]), headers={"content-type": "image/png"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no fault."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def polled(task: str, status: str, **changes: Any) -> dict[str, Any]:
    """The answer about a task, with all keys of the API's `ResultResponse`."""
    return {"id": task, "status": status, "result": None, "progress": None, "details": None, "preview": None, **changes}


def draw(asked: Mapping[str, Any]) -> bytes:
    """A PNG of a request: the seed is the background, the prompt a disc, the finetune at its strength a square."""
    paint = hashlib.sha256(str(asked["seed"]).encode()).digest()
    ink = hashlib.sha256(asked["prompt"].encode()).digest()
    image = Image.new("RGB", (asked["width"], asked["height"]), (paint[0], paint[1], paint[2]))
    pen = ImageDraw.Draw(image)
    pen.ellipse((8, 8, image.width - 8, image.height - 8), fill=(ink[0], ink[1], ink[2]))
    side = asked.get("finetune_strength", 0) * image.width / 2
    if side:
        colour = hashlib.sha256(asked["finetune_id"].encode()).digest()
        pen.rectangle((0, 0, side, side / 2), fill=(colour[0], colour[1], 255))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
