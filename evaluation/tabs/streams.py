"""Keep the answers of a page from being lost between two of its streams.

A page reads its answers from one stream, which Gradio's server closes when no event of the page is left. The page opens
the next one when an event was taken and it knows of none that is open. So an event that is taken while the word of the
close is still on its way is answered into no stream, and its answer waits until somebody clicks again.

Here an event that comes right after the close is taken at once, and the page is told so when it knows of the close.
"""

import asyncio
import time
from typing import Any, Final

from gradio.queueing import Queue

SETTLED_S: Final = 0.15
"""How long the word of a close may be on its way. It was sent before the answer that waits for it, to the same page."""


class Open(set[str]):
    """The ids of a page's events that are under way, as Gradio keeps them; knows when the last of them ended."""

    ended = -SETTLED_S

    def remove(self, event_id: str) -> None:
        """Take out an event that was answered; the last one closes the stream."""
        super().remove(event_id)
        if not self:
            self.ended = time.monotonic()


def settle_streams(queue: Queue) -> None:
    """Let `queue` tell a page that its event was taken only when a close of its stream has reached it."""
    take = queue.push

    async def push(*, body: Any, **more: Any) -> Any:
        under_way: dict[str, set[str]] = queue.pending_event_ids_session
        mine = under_way.setdefault(body.session_hash, Open()) if body.session_hash else set()
        taken = await take(body=body, **more)
        if isinstance(mine, Open):
            await asyncio.sleep(max(0.0, mine.ended + SETTLED_S - time.monotonic()))
        return taken

    queue.push = push
