"""Send mutated requests to every route of the API and say what went wrong: `python -m tests.mutated_bodies --help`.

The routes, their fields and the statuses that they may answer with are read from the API's own OpenAPI, so a new route
is tried without a line here. Each request begins as a right one and is then made wrong in one to three places. What
must hold: no answer of 5xx but 503, every status documented, no message above 500 characters, no answer later than two
seconds (what a busy machine let it wait for a processor is taken off, and one that is late is asked again), and every
task that was accepted ends well.

The server is one of its own on a loopback port, with a backend that draws. It connects to nobody, and no name service
is asked: a name is unknown, an address is what it says.
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import random
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote, urlsplit

import httpcore
from PIL import Image

from tests.api_server import Server, run_server
from tests.drawing_backend import DrawingBackend, make_lora

HANG_S = 2.0
_LOOK_UP = socket.getaddrinfo
MAX_MESSAGE = 500

HOSTS = (
    "127.0.0.1:9", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[fe80::1%25eth0]", "2130706433", "0x7f.1",
    "xn--", "xn--zzzzzz.invalid", f"{'a' * 64}.invalid", "a..invalid", "\u2100.invalid", "\u0661.invalid", "[::1", "",
    "hooks.invalid", "-.invalid", "a b.invalid", "user:pass@hooks.invalid", "hooks.invalid:0", "hooks.invalid:65536",
    "hooks.invalid:x", "\ud800.invalid", "hooks.invalid\\@10.0.0.1", "%31%30.0.0.1",
)  # fmt: skip

TEXTS = (
    "", " ", "\0", "a\0b", "\ud800", "a\udfffb", "\ud83d\ude00", "\r\nx: y", "\u202e\u2066", "\ufeff", "a" * 500,
    "a" * 20_000, "\u00e9" * 3000, "'; drop table tasks; --", "../../etc/passwd", "%s%n{0}{x}", "official/style",
    "OFFICIAL/STYLE", "/", "a/b/c", "local/x", "null", "true", "NaN", "1e400", "0x10", "\u0661", "1_0", "1" * 5000,
    "-1", "data:,x", "data:image/png;base64,", "data:image/png;base64,!!", "file:///etc/passwd", "ftp://hooks.invalid/",
    "\x85", "\x7f",
)  # fmt: skip

NUMBERS = (
    0, -1, 1, 2, 63, 64, 65, 255, 256, 257, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400,
    0.5, -0.0, 1e-300, 1e308, 5e-324, 2.0000001,
)  # fmt: skip

CONTENT_TYPES = (
    "application/json", "application/json; charset=utf-16", "text/plain", "application/octet-stream", "", "x",
    "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/problem+json",
)  # fmt: skip

HEADERS = {
    "x-key": ("", "kll_wrong", "\xff\xfe", "a" * 5000),
    "x-forwarded-host": ("evil.invalid", "a b<", "\xff", "localhost"),
    "x-forwarded-proto": ("javascript", "https", "\xff"),
    "x-forwarded-for": ("127.0.0.1", "203.0.113.9", "x,,"),
    "x-forwarded-prefix": ("//evil", "/klein", "\xff"),
    "origin": ("null", "https://evil.invalid", "http://127.0.0.1"),
    "range": ("bytes=5-1", "bytes=-1", "x"),
}


@dataclass(frozen=True)
class Operation:
    """One route of the OpenAPI: its parameters and body fields, and the statuses it may answer with."""

    method: str
    path: str
    parameters: tuple[str, ...]
    fields: tuple[str, ...]
    binary: bool
    statuses: frozenset[int]


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Findings:
    """What was answered, and what should not have been. `faults` are sentences with the request that shows each."""

    statuses: Counter[int] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    longest_message: int = 0


def read_operations(openapi: Mapping[str, Any]) -> list[Operation]:
    """Every operation of an OpenAPI document."""
    found = []
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema", {})
            if "$ref" in schema:
                schema = openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            found.append(
                Operation(
                    method=method.upper(),
                    path=path,
                    parameters=tuple(each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"),
                    fields=tuple(schema.get("properties", ())),
                    binary="application/octet-stream" in content,
                    statuses=frozenset(map(int, operation["responses"])),
                )
            )
    return found


class Mutator:
    """Makes wrong requests of right ones; the same seed makes the same."""

    def __init__(self, seed: int, operations: Sequence[Operation], right: Mapping[str, Any], lora: bytes) -> None:
        self._random = random.Random(seed)
        self._operations = operations
        self._right = right
        self._lora = lora

    def make(self) -> tuple[Operation, Request]:
        """One request, for a route that is drawn by lot."""
        pick = self._random
        operation = pick.choice(self._operations)
        headers: dict[str, str] = {"content-type": "application/json"} if operation.fields else {}
        query: list[tuple[str, str]] = [(name, str(self._right.get(name, "x"))) for name in operation.parameters]
        body = {name: self._right[name] for name in operation.fields if name in self._right}
        raw = b""
        if operation.binary:
            headers["content-type"], raw = "application/octet-stream", self._lora
            if pick.random() < 0.7:
                raw = self._spoil_file(raw)
        for _ in range(pick.randint(1, 3)):
            if operation.fields:
                self._spoil_field(body, pick.choice(operation.fields))
            if query and (pick.random() < 0.7 or not operation.fields):
                query = self._spoil_query(query)
        if operation.fields:
            raw = self._write(body)
        if pick.random() < 0.1:
            name = pick.choice(list(HEADERS))
            headers[name] = pick.choice(HEADERS[name])
        if raw and pick.random() < 0.05:
            headers["content-type"] = pick.choice(CONTENT_TYPES)
        written = "&".join(f"{quote(name)}={self._quote(value)}" for name, value in query)
        return operation, Request(operation.method, operation.path + (f"?{written}" if written else ""), headers, raw)

    def _value(self) -> Any:
        pick = self._random
        kind = pick.randrange(8)
        if kind <= 2:
            return pick.choice(TEXTS)
        if kind == 3:
            return pick.choice(NUMBERS)
        if kind == 4:
            return pick.choice((None, True, False, float("nan"), float("inf"), -float("inf")))
        if kind == 5:
            return pick.choice(([], {}, [None], {"a": 1}, [[]] * 50, ["x"] * 2, {"\ud800": "\udfff"}))
        if kind == 6:
            return (
                f"{pick.choice(('http', 'https', 'HTTP', 'gopher'))}://{pick.choice(HOSTS)}/{pick.choice(TEXTS)[:2100]}"
            )
        return "".join(
            chr(pick.choice((pick.randrange(128), pick.randrange(0x11_0000)))) for _ in range(pick.randint(1, 40))
        )

    def _spoil_field(self, body: dict[str, Any], name: str) -> None:
        pick = self._random
        if name.startswith("input_image") and pick.random() < 0.4:
            picture = make_picture(pick.choice(("PNG", "JPEG", "WEBP")))
            body[name] = base64.b64encode(self._spoil_file(picture)).decode()
        elif pick.random() < 0.1:
            body.pop(name, None)
        elif pick.random() < 0.05:
            body[f"{name}\ud800"] = self._value()
        else:
            body[name] = self._value()

    def _spoil_query(self, query: list[tuple[str, str]]) -> list[tuple[str, str]]:
        pick = self._random
        place = pick.randrange(len(query))
        name, _ = query[place]
        value = str(pick.choice((self._value(), pick.choice(TEXTS))))[:8000]
        return pick.choice(
            (
                [*query[:place], (name, value), *query[place + 1 :]],
                [*query[:place], *query[place + 1 :]],
                [*query, (name, value)],
                [*query, ("\ufffd", value)],
            )
        )

    def _quote(self, value: str) -> str:
        """Percent-encoded, sometimes by no rule at all."""
        written = quote(value, safe="", errors="surrogatepass")
        return self._random.choice(("%ff%fe", "%", "%zz", "%ed%a0%80")) if self._random.random() < 0.05 else written

    def _write(self, body: Mapping[str, Any]) -> bytes:
        """JSON, sometimes broken as text."""
        pick = self._random
        text = json.dumps(body, ensure_ascii=pick.random() < 0.7)
        data = text.encode(errors="surrogatepass")
        ways: tuple[Callable[[], bytes], ...] = (
            lambda: data[: pick.randrange(len(data))],
            lambda: self._spoil_file(data),
            lambda: b"\xef\xbb\xbf" + data,
            lambda: text.encode("utf-16", errors="surrogatepass"),
            lambda: data + b"}",
            lambda: b"[" * 100_000,
            lambda: b'{"a":' * 50_000,
            lambda: json.dumps([body]).encode(),
            lambda: data.replace(b"{", b'{"prompt": 1, "prompt": "x", ', 1),
            lambda: b'{"width": ' + b"9" * 5000 + b', "prompt": "x", "finetune_id": "official/style"}',
            lambda: pick.choice((b"", b"null", b"0", b'""', b"[]", b"{}", b"\xff", b"\0")),
        )
        return pick.choice(ways)() if pick.random() < 0.25 else data

    def _spoil_file(self, data: bytes) -> bytes:
        pick = self._random
        spoiled = bytearray(data)
        for _ in range(pick.randint(1, 8)):
            spoiled[int(len(spoiled) * pick.random() ** 4)] = pick.randrange(256)  # mostly near the header
        if pick.random() < 0.3:
            del spoiled[pick.randrange(len(spoiled)) :]
        if pick.random() < 0.1:
            spoiled += pick.randbytes(100)
        return bytes(spoiled)


def make_picture(picture_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, format=picture_format)
    return buffer.getvalue()


class Asker:
    """Sends requests over one connection, as long as the server keeps it."""

    def __init__(self, url: str) -> None:
        self._netloc = urlsplit(url).netloc
        self._connection = http.client.HTTPConnection(self._netloc, timeout=60)

    def ask(self, request: Request) -> tuple[int, bytes, float]:
        """The status and body of the answer, and the seconds until it was there."""
        try:
            return self._ask(request)
        except (http.client.HTTPException, ConnectionError):  # the server closes a connection that rests
            self._connection.close()
            return self._ask(request)

    def _ask(self, request: Request) -> tuple[int, bytes, float]:
        started, queued = time.monotonic(), measure_queued_s()
        self._connection.request(request.method, request.path, request.body, request.headers)
        reply = self._connection.getresponse()
        body = reply.read()
        return reply.status, body, time.monotonic() - started - max(0.0, measure_queued_s() - queued)

    def close(self) -> None:
        self._connection.close()


def measure_queued_s() -> float:
    """How long the threads of this process have waited for a processor; 0 where the system does not say."""
    waits = 0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # it has ended
            waits += int(thread.read_text().split()[1])
    return waits / 1e9


def judge(operation: Operation, status: int, body: bytes, findings: Findings) -> Iterator[str]:
    """Every fault of an answer, as a sentence."""
    if status >= 500 and status != 503:
        yield f"answered {status}: {body[:200]!r}"
    if status not in operation.statuses:
        yield f"answered {status}, which is not documented: {body[:200]!r}"
    if status >= 400:
        try:
            detail = json.loads(body)["detail"]
        except (ValueError, KeyError, TypeError):
            yield f"answered {status} without a detail: {body[:200]!r}"
            return
        messages = [detail] if isinstance(detail, str) else [problem["msg"] for problem in detail]
        longest = max(map(len, messages), default=0)
        findings.longest_message = max(findings.longest_message, longest)
        if longest > MAX_MESSAGE:
            yield f"answered with a message of {longest} characters"


def mutate(
    server: Server, *, count: int, seed: int, tell: Callable[[Findings], None] = lambda _findings: None
) -> Findings:
    """Send `count` mutated requests to a server and return what was found."""
    ready = server.ask("POST", "/v1/flux-2-klein-pocket", {"prompt": "a cat", "width": 64, "height": 64}).json
    right = {
        "prompt": "a red cat", "seed": 7, "width": 64, "height": 64, "finetune_id": "official/style", "id": ready["id"],
        "finetune_strength": 1.0, "base_model": "pocket", "organization_id": "zenith", "language": "curl",
        "source": "all", "output_format": "png", "trigger_phrase": "TOK",
    }  # fmt: skip
    operations = read_operations(server.ask("GET", "/v1/openapi.json").json)
    mutator, asker, findings = (
        Mutator(seed, operations, right, make_lora("sent").path.read_bytes()),
        Asker(server.url),
        Findings(),
    )
    accepted = [ready["id"]]
    for number in range(count):
        operation, request = mutator.make()
        shown = f"request {number} of seed {seed} ({request.method} {request.path[:120]}, {request.body[:200]!r})"
        try:
            status, body, seconds = asker.ask(request)
            if seconds > HANG_S:
                status, body, seconds = asker.ask(request)
        except (OSError, http.client.HTTPException) as error:
            findings.faults.append(f"{shown} got no answer: {error!r}")
            continue
        findings.slowest_s = max(findings.slowest_s, seconds)
        findings.statuses[status] += 1
        findings.routes[operation.path] += 1
        faults = [*judge(operation, status, body, findings)]
        if seconds > HANG_S:
            faults.append(f"took {seconds:.1f} s, twice")
        findings.faults += [f"{shown} {fault}" for fault in faults]
        if status == 200 and operation.path.startswith("/v1/flux-"):
            accepted.append(json.loads(body)["id"])
        tell(findings)
    asker.close()
    findings.ended.update(server.wait(f"/v1/get_result?id={task_id}")["status"] for task_id in accepted)
    return findings


def look_up_numbers(host: str, *rest: Any, flags: int = 0, **named: Any) -> Any:
    """`socket.getaddrinfo` for addresses alone."""
    return _LOOK_UP(host, *rest, flags=flags | socket.AI_NUMERICHOST, **named)


@contextlib.contextmanager
def mutation_server(home: Path) -> Iterator[Server]:
    """A server that takes as many tasks as are sent, and reaches nothing."""
    unreachable = mock.patch.object(httpcore.SyncBackend, "connect_tcp", side_effect=httpcore.ConnectError("no route"))
    nameless = mock.patch("socket.getaddrinfo", look_up_numbers)
    with (
        unreachable,
        nameless,
        run_server(DrawingBackend(), home, max_active_tasks=100_000, lora_max_bytes=1_000_000) as server,
    ):
        yield server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    started = time.monotonic()

    def tell(findings: Findings) -> None:
        if (number := sum(findings.statuses.values())) % 250 == 0:
            seconds = time.monotonic() - started
            print(f"{number} of {asked.count}, {len(findings.faults)} faults, {seconds:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as home, mutation_server(Path(home)) as server:
        findings = mutate(server, count=asked.count, seed=asked.seed, tell=tell)
    for fault in findings.faults:
        print(fault)
    print(
        json.dumps(
            {
                "requests": asked.count, "seed": asked.seed, "faults": len(findings.faults),
                "statuses": dict(sorted(findings.statuses.items())), "tasks": dict(findings.ended),
                "routes": len(findings.routes), "slowest_s": round(findings.slowest_s, 2),
                "longest_message": findings.longest_message, "seconds": round(time.monotonic() - started),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
