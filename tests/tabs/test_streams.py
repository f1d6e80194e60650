import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from evaluation.tabs import streams
from evaluation.tabs.streams import SETTLED_S, settle_streams


class Queue:
    """What `settle_streams` uses of Gradio's queue: it takes an event and notes its id under the page's session."""

    def __init__(self) -> None:
        self.pending_event_ids_session: dict[str, set[str]] = {}
        self.number = 0

    async def push(self, *, body: Any, request: object, username: object) -> tuple[bool, str, str]:
        self.number += 1
        session = body.session_hash or "made up"
        self.pending_event_ids_session.setdefault(session, set()).add(str(self.number))
        return True, str(self.number), "success"


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(streams, "asyncio", SimpleNamespace(sleep=sleep))
    return waits


def push(queue: Queue, session: str | None) -> str:
    body = SimpleNamespace(session_hash=session)
    answer = asyncio.run(queue.push(body=body, request=None, username=None))
    assert answer[0] is True
    return answer[1]


def test_an_event_right_after_a_close_is_taken_when_that_is_over(
    slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    queue = Queue()
    settle_streams(queue)  # type: ignore[arg-type]
    first, second = push(queue, "page"), push(queue, "page")
    queue.pending_event_ids_session["page"].remove(first)
    push(queue, "page")
    assert slept == [0, 0, 0], "the stream is open: nothing waits"
    for event in (second, "3"):
        queue.pending_event_ids_session["page"].remove(event)
    push(queue, "another page")
    push(queue, None)
    assert slept == [0, 0, 0, 0], "another page has a stream of its own, and no page none"
    push(queue, "page")
    now[0] += SETTLED_S / 2
    push(queue, "page")
    now[0] += SETTLED_S
    push(queue, "page")
    assert slept[4:] == pytest.approx([SETTLED_S, SETTLED_S / 2, 0])
