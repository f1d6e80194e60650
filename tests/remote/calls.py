"""The request that these tests send, and what comes of it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

from lora_runtime.backends.remote import Pace, RemoteBackend
from lora_runtime.errors import KleinLabError
from lora_runtime.lora.library import refer_to
from lora_runtime.values import Failed, Progress, Rendered, RenderEvent, RenderRequest
from tests.bfl_doubles import KEY, BflDouble, Reply

QUICK = Pace(first_poll_s=0.005, longest_poll_s=0.02, first_retry_s=0.005, longest_retry_s=0.02, tries=3, timeout_s=60)
IMPATIENT = replace(QUICK, timeout_s=1.0)

REQUEST = RenderRequest(
    weights="klein-9b",
    precision="fp8",
    prompt="a red fox",
    seed=7,
    width=64,
    height=80,
    steps=4,
    guidance=1.0,
    lora=refer_to("their-org/fox-style"),
    strength=Decimal("0.70"),
)


def ends(events: Iterator[RenderEvent]) -> list[Rendered | Failed]:
    ended = [event for event in events if not isinstance(event, Progress)]
    return sorted(ended, key=lambda event: event.index)


def image(backend: RemoteBackend, request: RenderRequest = REQUEST) -> Rendered:
    (event,) = ends(backend.render([request]))
    assert isinstance(event, Rendered), event
    return event


def error(backend: RemoteBackend, request: RenderRequest = REQUEST) -> KleinLabError:
    (event,) = ends(backend.render([request]))
    assert isinstance(event, Failed)
    return event.error


def impatient(server: BflDouble) -> RemoteBackend:
    return RemoteBackend(server.origin, KEY, pace=IMPATIENT)


class Scripted:
    """Answers the poll that would be Ready with what `reply` makes of the task."""

    def __init__(self, server: BflDouble, reply: Callable[[str], Reply]) -> None:
        self._server = server
        self._reply = reply

    def __enter__(self) -> None:
        ready = self._server.ready
        self._server.ready = lambda task, **_: self._reply_with(ready, task)  # type: ignore[method-assign]

    def __exit__(self, *_error: object) -> None:
        del self._server.ready  # type: ignore[attr-defined]

    def _reply_with(self, ready: Callable[..., dict[str, Any]], task: str) -> Any:
        self._server.ready = ready  # type: ignore[method-assign]
        body = self._reply(task).body
        self.__enter__()
        return body
