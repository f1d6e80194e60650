"""Render through the BFL API, or through any server that speaks it, such as ours.

One thread runs an event loop with up to `max_active` tasks under way, of any number of callers; `remote_task.py` is
the way of one of them, `remote_finetunes.py` knows the LoRAs of the server, `remote_http.py` the server and the key,
and `bfl.py` reads and writes what is said.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Final

from lora_runtime.backends.base import choose_status
from lora_runtime.backends.remote_finetunes import RemoteFinetunes
from lora_runtime.backends.remote_http import Http
from lora_runtime.backends.remote_task import Pace, RemoteTask
from lora_runtime.catalogue import ENDPOINTS, Endpoint, find_weights
from lora_runtime.errors import (
    Cancelled,
    KleinLabError,
    NotAuthorized,
    OutOfCredits,
    RemoteFailed,
    Unavailable,
)
from lora_runtime.events import read_events
from lora_runtime.values import (
    Failed,
    ModelStatus,
    Precision,
    Progress,
    Rendered,
    RenderEvent,
    RenderRequest,
)

__all__ = ["MAX_ACTIVE", "UNSTATED", "Pace", "RemoteBackend"]

logger = logging.getLogger(__name__)

MAX_ACTIVE: Final = 24
"""Active tasks an account may have. Source: docs.bfl.ai/quick_start/generating_images"""

UNSTATED: Final[Precision] = "bf16"
"""What an endpoint that names no precision (the pocket's) goes by here; the server renders it in its own default."""


class RemoteBackend:
    """The server at `place`: a region of the BFL API (global, eu, us) or a base URL.

    `finetunes` says under which id the server knows a LoRA, by the SHA-256 of its file; a server of this lab recognises
    files by itself. `key` may be None for a server that asks for none.

    Raises:
        InvalidInput: The base URL or the key is malformed.
        Unavailable: The environment asks for a proxy or certificates that cannot be used.
    """

    name = "remote"
    label = "The remote server"

    def __init__(
        self,
        place: str,
        key: str | None,
        *,
        finetunes: Mapping[str, str] | None = None,
        max_active: int = MAX_ACTIVE,
        pace: Pace | None = None,
    ) -> None:
        self._http = Http(place, key)
        self._finetunes = RemoteFinetunes(self._http, finetunes or {})
        self._pace = pace or Pace()
        self._slots = asyncio.Semaphore(max_active)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"RemoteBackend({self.server!r})"

    @property
    def server(self) -> str:
        """The base URL that requests go to."""
        return self._http.origin

    def status(self, weights: str, precision: Precision | None) -> ModelStatus:
        """See `Backend.status`; nobody is asked."""
        return choose_status(self.models(), weights, precision, backend=self.name)

    def models(self) -> Sequence[ModelStatus]:
        """Return one status per endpoint that takes a finetune.

        Asks nobody: what the server lacks, it says when it is asked to render.
        """
        statuses = []
        for endpoint in ENDPOINTS.values():
            if endpoint.finetuned:
                reason = self._why_not(endpoint)
                statuses.append(
                    ModelStatus(
                        weights=endpoint.weights,
                        precision=endpoint.precision or UNSTATED,
                        available=not reason,
                        reason=reason,
                        digest=f"remote:{self.server}:{endpoint.name}",
                    )
                )
        return statuses

    def render(
        self, requests: Sequence[RenderRequest], *, cancel: threading.Event | None = None
    ) -> Iterator[RenderEvent]:
        """See `Backend.render`. A task that was sent before it was cancelled goes on at the server and is billed."""
        if cancel is not None and cancel.is_set():
            yield from (Failed(index=index, error=_stopped()) for index in range(len(requests)))
            return
        run = _Run(requests)
        self._begin(run)
        yield from read_events(run.events, len(requests), cancel=cancel, stop=partial(self._call, run.stop))

    def close(self) -> None:
        """Stop what is under way, close every connection and end the thread."""
        with self._lock:
            self._closed = True
        if self._thread is not None and self._loop is not None:
            self._call(self._loop.stop)
            self._thread.join()

    def _why_not(self, endpoint: Endpoint) -> str:
        """Why the server cannot render at `endpoint`, as far as that is known without asking it."""
        weights = find_weights(endpoint.weights)
        if self._http.is_bfl and weights.bundled:
            return f"{self.server} does not have the {weights.label}. Choose other weights, or a server of this lab."
        if self._http.is_bfl and not self._http.has_key:
            return f"{self.server} needs an API key: set BFL_API_KEY."
        return ""

    def _begin(self, run: "_Run") -> None:
        """Give the requests of a run to the loop; the first run starts it."""
        with self._lock:
            if self._closed:
                raise Unavailable("The remote backend is closed. Start the app again.")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._work, args=(self._loop,), name="klein-remote", daemon=True)
                self._thread.start()
            self._call(partial(self._create_tasks, run, self._loop))

    def _create_tasks(self, run: "_Run", loop: asyncio.AbstractEventLoop) -> None:
        for index, request in enumerate(run.requests):
            run.add(index, loop.create_task(self._render_one(run, index, request)))

    async def _render_one(self, run: "_Run", index: int, request: RenderRequest) -> Rendered:
        """Render one request as soon as there is a free slot."""
        clock = asyncio.get_running_loop().time
        asked = clock()
        async with self._slots:
            if run.pointless is not None:
                raise type(run.pointless)(str(run.pointless))
            report = run.reporter(index, request.steps)
            task = RemoteTask(request, self._finetunes, http=self._http, pace=self._pace, report=report)
            try:
                return await task.run(index, clock() - asked)
            except (NotAuthorized, OutOfCredits) as error:
                run.pointless = error
                raise

    def _call(self, function: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and every task with it
                self._loop.call_soon_threadsafe(function)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_forever()
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left))
            loop.run_until_complete(self._http.close())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()


class _Run:
    """One call of `render`: its events, its tasks, and the error that makes the rest of it pointless."""

    def __init__(self, requests: Sequence[RenderRequest]) -> None:
        self.requests = requests
        self.events: SimpleQueue[RenderEvent | Exception] = SimpleQueue()
        self.pointless: NotAuthorized | OutOfCredits | None = None
        self._tasks: list[asyncio.Task[Rendered]] = []

    def add(self, index: int, task: asyncio.Task[Rendered]) -> None:
        self._tasks.append(task)
        task.add_done_callback(partial(self._end, index))

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def reporter(self, index: int, steps: int) -> Callable[[float], None]:
        """Return what turns progress into steps, each told once."""
        last = -1

        def report(progress: float) -> None:
            nonlocal last
            step = round(progress * steps)
            if step > last:
                last = step
                self.events.put(Progress(indices=(index,), step=step, steps=steps))

        return report

    def _end(self, index: int, task: asyncio.Task[Rendered]) -> None:
        """Put the one event that ends a request, whatever became of its task."""
        if task.cancelled():
            self.events.put(Failed(index=index, error=_stopped()))
        elif (error := task.exception()) is None:
            self.events.put(task.result())
        elif isinstance(error, KleinLabError):
            self.events.put(Failed(index=index, error=error))
        else:
            logger.error("A remote render failed", exc_info=error)
            fault = RemoteFailed(f"The request failed on its way: {type(error).__name__}. The log says more.")
            self.events.put(Failed(index=index, error=fault))


def _stopped() -> Cancelled:
    return Cancelled("Stopped before it was rendered.")
