"""Keep the answers of a page from being lost between two of its streams.

A page reads its answers from one stream, which Gradio's server closes when no event of the page is left. The page opens
the next one when an event was taken and it knows of none that is open. So an event that is taken while the word of the
close is still on its way is answered into no stream, and its answer waits until somebody clicks again; and where the
page hangs up before the server has ended the old stream, that end takes the new event with it.

Here an event that comes right after the close is taken when that has been dealt with on both sides.
"""

import asyncio
import time
from typing import Any, Final

from gradio.queueing import Queue

SETTLED_S: Final = 0.15
"""How long that may take. The word of the close was sent before the answer that waits for it, to the same page."""


class Open(set[str]):
    """The ids of a page's events that are under way, as Gradio keeps them; knows when the last of them ended."""

    ended = -SETTLED_S

    def remove(self, event_id: str) -> None:
        """Take out an event that was answered; the last one closes the stream."""
        super().remove(event_id)
        if not self:
            self.ended = time.monotonic()


def settle_streams(queue: Queue) -> None:
    """Let `queue` take an event of a page only when a close of the page's stream is over."""
    take = queue.push

    async def push(*, body: Any, **more: Any) -> Any:
        under_way: dict[str, set[str]] = queue.pending_event_ids_session
        if body.session_hash:
            mine = under_way.setdefault(body.session_hash, Open())
            if isinstance(mine, Open):
                await asyncio.sleep(max(0.0, mine.ended + SETTLED_S - time.monotonic()))
            under_way.setdefault(body.session_hash, Open())  # the end of a stream may have taken it away meanwhile
        return await take(body=body, **more)

    queue.push = push
