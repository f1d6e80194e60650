"""The events of one lane of one page, one after the other, in the order in which the page made them.

Each has the page's own number for it, which the network does not keep: an event may overtake the one before it, and
would then read what that has not written yet. So it waits for it, for a while.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import gradio as gr

ON_ITS_WAY_S: Final = 3.0
"""How long an event waits for one that the page made before it, and that has not come yet."""

_SKIP: Final = gr.skip()


class Turns:
    """The events of one lane of one page."""

    def __init__(self) -> None:
        self._moved = asyncio.Condition()
        self._waiting: list[int] = []
        self._busy = False
        self._last = 0
        self._taken = 0
        self._drawn: dict[int, int] = {}

    @asynccontextmanager
    async def take(self, number: object) -> AsyncIterator[int]:
        """Wait for the turn of the page's event `number`; a caller that does not count is the newest."""
        mine = number if isinstance(number, int) else self._last + 1
        self._last = max(self._last, mine)
        async with self._moved:
            self._waiting.append(mine)
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._moved.wait_for(lambda: mine <= self._taken + 1), ON_ITS_WAY_S)
                await self._moved.wait_for(lambda: not self._busy and mine == min(self._waiting))
            finally:
                self._waiting.remove(mine)
            self._busy, self._taken = True, max(self._taken, mine)
            self._moved.notify_all()
        try:
            yield mine
        finally:
            async with self._moved:
                self._busy = False
                self._moved.notify_all()

    def keep_newest(self, number: int, outputs: Sequence[gr.blocks.Block], answer: list[Any]) -> list[Any]:
        """Leave out of an answer what a later event has drawn already."""
        kept = []
        for output, value in zip(outputs, answer, strict=True):
            is_late = number < self._drawn.get(output._id, number)
            if not _is_skip(value) and not is_late:
                self._drawn[output._id] = number
            kept.append(_SKIP if is_late else value)
        return kept


def _is_skip(value: object) -> bool:
    """Whether Gradio tells the page to leave a component as it is; of HTML it says so of its properties too."""
    return isinstance(value, dict) and all(value[key] == "update" or _is_skip(value[key]) for key in value)
