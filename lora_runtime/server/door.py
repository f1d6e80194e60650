"""The door of the port: a web page of another site, open in a browser on this machine, gets nothing through it.

Such a page can send requests to 127.0.0.1 as itself, which its Origin says, or under a name of its own that it has made
to point here (DNS rebinding), which is then the Host. So where the port is this machine's alone both must be local, or
the proxy's that KLEIN_LAB_PUBLIC_URL names. On a port that others can reach too every Host is right, and an Origin must
be the same as the Host. A Space is a public site: it has no door.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lora_runtime.server.access import NO_KEYS, split_values
from lora_runtime.server.addresses import is_loopback_name
from lora_runtime.settings import Settings

_REMEDY: Final = (
    "This page answers its own machine alone: open it as http://127.0.0.1 or http://localhost with its port. If a "
    "proxy of yours stands in front, start it with the proxy's address, as KLEIN_LAB_PUBLIC_URL=https://lab.example."
)
_SHOWN: Final = 100
_PORTS: Final = {"http": 80, "https": 443}


class Door:
    """Answers 403 to strangers. Once there are keys, the API is asked from anywhere: they say who asks."""

    def __init__(self, app: ASGIApp, *, settings: Settings, has_keys: Callable[[], bool]) -> None:
        self._app = app
        self._settings = settings
        self._has_keys = has_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] in ("http", "websocket") and not self._settings.on_space:
            api = scope["path"].startswith("/v1/")
            local = api or is_loopback_name(self._settings.host)
            why = find_stranger(Headers(scope=scope), local=local, public_url=self._settings.public_url)
            if why is not None and not (api and await run_in_threadpool(self._has_keys)):
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008, "reason": "not local"})
                else:
                    detail = f"This request {why}. {NO_KEYS if api else _REMEDY}"
                    await JSONResponse({"detail": detail}, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def guard(settings: Settings, has_keys: Callable[[], bool]) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """Return the lifespan of an application that puts a door before all of it.

    It goes around the finished stack, as middleware that the application adds to itself would lie outside.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        inside = app.middleware_stack or app.build_middleware_stack()
        app.middleware_stack = Door(inside, settings=settings, has_keys=has_keys)
        yield

    return lifespan


def find_stranger(headers: Headers, *, local: bool, public_url: str | None) -> str | None:
    """Return what makes a request a stranger's, as the predicate of a sentence; None when it comes from here.

    `local` says that only this machine should reach the port.
    """
    public = _place(public_url or "")
    hosts = [*split_values(headers, "host"), *split_values(headers, "x-forwarded-host")]
    strange = [host for host in hosts or [""] if not _is_known(host.lower(), public)]
    if local and strange:
        return f"was sent to the name {strange[0][:_SHOWN]!r}"
    origins = headers.getlist("origin")
    if not origins and headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
        return "is part of a page of another site"  # a link to us is none
    for origin in origins:
        place = _place(origin)
        if not _is_known(place, public) and (local or place not in map(str.lower, hosts)):
            return f"comes from the page {origin[:_SHOWN]!r}"
    return None


def _is_known(place: str, public: str) -> bool:
    """Whether a host, with its port if any, is this machine or the proxy in front of it."""
    return is_loopback_name(place) or (bool(place) and place == public)


def _place(url: str) -> str:
    """The host of an http or https address, with its port as browsers write it; empty where it is none, as `null`."""
    try:
        parts = urlsplit(url.lower())
        port = parts.port
    except ValueError:
        return ""
    if parts.scheme not in _PORTS or not parts.hostname:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return host if port in (None, _PORTS[parts.scheme]) else f"{host}:{port}"
