"""Who is asking, how they reach this server, how much they may say, and the URLs that let anyone fetch a result.

A key speaks for its organization. Without any key the server answers on loopback only. A proxy on this machine also
connects from loopback, so every address and host name that a request carries must be local too; `door.py` looks at the
page it comes from. Whoever has the signed URL of a result may fetch the image, without a key, until it expires; its
shape is that of BFL's delivery URLs: the file is called sample.<format>, `se` is when it expires.
"""

import math
import re
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from itsdangerous import Signer
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_runtime.errors import NotAuthorized
from lora_runtime.references import MAX_BYTES, MAX_REFERENCES
from lora_runtime.registry.accounts import LOCAL, Accounts
from lora_runtime.server.addresses import is_loopback, is_loopback_name
from lora_runtime.server.tasks import Task

MAX_BODY_BYTES: Final = MAX_REFERENCES * MAX_BYTES * 4 // 3 + 1_000_000
"""What four input images take as base64, and some room."""

_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_HOST = re.compile(r"[A-Za-z0-9._~-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
NO_KEYS: Final = (
    "Not authenticated: this server has no keys, so it answers on its own machine only. Make one there with "
    "`python -m lora_runtime keys create --organization NAME` and send it as the x-key header."
)


def find_caller(accounts: Accounts, request: Request, key: str | None) -> str:
    """Return the organization that a request speaks for.

    Raises:
        NotAuthorized: There are keys and this is none; or there are none and the request is not from this machine.
    """
    if accounts.has_keys():
        return accounts.authenticate(key)
    if not _is_local(request):
        raise NotAuthorized(NO_KEYS)
    return LOCAL


def read_base_url(request: Request, public_url: str | None) -> str:
    """Return `scheme://host[/prefix]` of this server as the caller reaches it, proxies included."""
    if public_url:
        return public_url.rstrip("/")
    forwarded = {name: _first(request, f"x-forwarded-{name}") for name in ("proto", "host", "prefix")}
    scheme = forwarded["proto"] if forwarded["proto"] in ("http", "https") else request.url.scheme
    named = [host for host in (forwarded["host"], _first(request, "host")) if _HOST.fullmatch(host)]
    host = named[0] if named else request.url.netloc
    prefix = forwarded["prefix"].rstrip("/")
    return f"{scheme}://{host}{prefix if _PREFIX.fullmatch(prefix) else ''}"


def split_values(headers: Headers, name: str) -> list[str]:
    """Every value of a header, however many lines and commas divide them."""
    return [part.strip() for value in headers.getlist(name) for part in value.split(",")]


class BodyLimit:
    """Answers 413 to bodies above `max_bytes`, but for the path `unlimited`, which counts for itself."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, unlimited: str) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._unlimited = unlimited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as long as its body is short enough."""
        if scope["type"] != "http" or scope["path"].endswith(self._unlimited):
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await JSONResponse({"detail": self._message()}, 413)(scope, receive, send)
            return
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, self._message())
            return message

        await self._app(scope, count, send)

    def _message(self) -> str:
        return f"The body has more than {self._max_bytes // 10**6} MB, which is the limit. Send images as URLs."


class ResultUrls:
    """Makes and checks the URLs of results with one secret."""

    def __init__(self, secret: str) -> None:
        self._signer = Signer(secret, salt="klein-lora-lab.results")

    def make(self, base_url: str, task: Task) -> str:
        """Return the URL of a finished task's image."""
        name = f"sample.{task.output_format}"
        expires = datetime.fromtimestamp(math.ceil(task.expires or 0.0), UTC).strftime(_TIME)
        query = {"se": expires, "rsct": f"image/{task.output_format}", "sig": self._sign(task.id, name, expires)}
        return f"{base_url}/v1/results/{task.id}/{name}?{urlencode(query, safe='/')}"

    def check(self, task_id: str, name: str, expires: str, signature: str, *, now: float) -> None:
        """Refuse a URL that was not made here, or whose time is over.

        Raises:
            NotAuthorized: Either; the message says which.
        """
        if not self._signer.verify_signature(_value(task_id, name, expires), signature):
            raise NotAuthorized("This URL was not signed here. Poll the task for its own.")
        if datetime.strptime(expires, _TIME).replace(tzinfo=UTC).timestamp() <= now:
            raise NotAuthorized(f"This URL expired at {expires}. Results are kept for ten minutes; render it again.")

    def _sign(self, task_id: str, name: str, expires: str) -> str:
        return self._signer.get_signature(_value(task_id, name, expires)).decode()


def _value(task_id: str, name: str, expires: str) -> str:
    return f"{task_id}/{name}/{expires}"


def _is_local(request: Request) -> bool:
    addresses = [request.client.host if request.client else "", *split_values(request.headers, "x-forwarded-for")]
    addresses += [address for name in ("x-real-ip", "forwarded") if (address := _first(request, name))]
    names = [_first(request, "host"), *split_values(request.headers, "x-forwarded-host")]
    return all(map(is_loopback, addresses)) and all(map(is_loopback_name, names))


def _first(request: Request, header: str) -> str:
    return request.headers.get(header, "").split(",")[0].strip()
