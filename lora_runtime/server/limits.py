"""How long a request's body may be: what four input images take as base64, and some room."""

from typing import Final

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_runtime.references import MAX_BYTES, MAX_REFERENCES

MAX_BODY_BYTES: Final = MAX_REFERENCES * MAX_BYTES * 4 // 3 + 1_000_000


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
