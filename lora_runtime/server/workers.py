"""From the queue to the backend and back: threads that render tasks, and one that keeps claims alive and tidies up.

Each task is a `Backend.render` call of its own from its own thread: the engine puts those that fit together into one
batch, whoever asked for them. A task whose worker stops goes back into the queue. One that was being rendered when its
process died is rendered alone: if it is the cause, it takes nobody with it.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from lora_runtime.backends.base import Backend
from lora_runtime.backends.bfl_words import OUTPUT_FORMATS, REASONS, Status
from lora_runtime.errors import Cancelled, KleinLabError, Moderated, StorageFailed
from lora_runtime.registry.finetunes import SUFFIX, Finetunes
from lora_runtime.server.claims import LEASE_S
from lora_runtime.server.dispatch import Dispatcher
from lora_runtime.server.images import encode_result
from lora_runtime.server.tasks import REFERENCE_SUFFIX, RESULT_SUFFIX, Task, Tasks
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.uploads import LEFT_OVER_S, remove_leftovers
from lora_runtime.values import Failed, Progress, Rendered, RenderRequest

logger = logging.getLogger(__name__)

_RENEW_S: Final = LEASE_S / 4
_TIDY_S: Final = 60.0


class Workers:
    """Renders the tasks of a queue, `count` at a time. `on_end` is called after each task that ended here."""

    def __init__(
        self,
        backend: Backend,
        tasks: Tasks,
        finetunes: Finetunes,
        blobs: Blobs,
        *,
        count: int,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._backend = backend
        self._tasks = tasks
        self._finetunes = finetunes
        self._blobs = blobs
        self._on_end = on_end
        self._progress: dict[str, float] = {}
        self._dispatcher = Dispatcher[Task](
            "task",
            lambda _under_way, room: tasks.claim(room),
            self._work,
            most=count,
            alone=lambda task: task.attempts > 0,
        )
        self._stop = self._dispatcher.stopping
        self._keeper = threading.Thread(target=self._keep, name="klein-keeper", daemon=True)

    def start(self) -> None:
        """Begin to take tasks."""
        self._dispatcher.start()
        self._keeper.start()

    def wake(self) -> None:
        """Look at the queue now: a task was accepted."""
        self._dispatcher.wake()

    def progress(self, task_id: str) -> float:
        """How far a task is, from 0 to 1; 0 when it waits, or is rendered by another process."""
        return self._progress.get(task_id, 0.0)

    def close(self) -> None:
        """Stop after the denoising step under way; what was not finished waits in the queue for the next start."""
        self._dispatcher.close()
        if self._keeper.is_alive():
            self._keeper.join()

    def _work(self, task: Task) -> None:
        try:
            self._render(task)
        except Cancelled:
            self._let_go(task)
        except StorageFailed as error:
            logger.warning("Task %s is tried again later: %s", task.id, error)
            self._let_go(task, wait_s=LEASE_S)
        except Moderated as error:
            status = Status.REQUEST_MODERATED if error.stage == "request" else Status.CONTENT_MODERATED
            self._fail(task, status, {REASONS: list(error.reasons)})
        except KleinLabError as error:
            if self._stop.is_set():
                self._let_go(task)
            else:
                self._fail(task, Status.ERROR, {"error": str(error)})
        except Exception:  # the thread must live, and the caller must hear of it
            logger.exception("Task %s failed", task.id)
            self._fail(
                task, Status.ERROR, {"error": "The server failed on this task. Its log says why; submit it again."}
            )
        finally:
            self._progress.pop(task.id, None)
            self._on_end()

    def _render(self, task: Task) -> None:
        started = time.time()
        request = self._with_files(task)
        begun = False
        for event in self._backend.render([request], cancel=self._stop):
            if isinstance(event, Progress):
                if not begun:
                    self._tasks.begin(task)
                    begun = True
                self._progress[task.id] = event.step / event.steps
            elif isinstance(event, Failed):
                raise event.error
            elif isinstance(event, Rendered):
                data = encode_result(event.image, task.output_format, request)
                suffix = f".{task.id}{RESULT_SUFFIX}.{task.output_format}"
                blob = self._blobs.put(data, suffix=suffix)
                if not self._tasks.finish(task, blob=blob, started=started):
                    logger.warning("Task %s was rendered twice: this process had lost its claim.", task.id)
                elif task.attempts:
                    self._forget_attempts(suffix, blob)

    def _forget_attempts(self, suffix: str, blob: str) -> None:
        """Delete the file of a process that was killed before it could name it; in another batch it had other bytes."""
        with contextlib.suppress(StorageFailed):  # the tidying takes it later
            for key in self._blobs.keys(suffix, unchanged_s=0):
                if key != blob:
                    self._blobs.remove(key)

    def _with_files(self, task: Task) -> RenderRequest:
        """The request with its files where they are now: the home folder may have moved since it was accepted."""
        request = task.request
        if request.lora is not None and task.lora_blob is not None:
            request = replace(request, lora=replace(request.lora, path=self._blobs.path(task.lora_blob)))
        found = tuple(
            replace(reference, path=self._blobs.path(reference.path.name)) for reference in request.references
        )
        return replace(request, references=found)

    def _fail(self, task: Task, status: Status, details: dict[str, object]) -> None:
        try:
            self._tasks.fail(task, status, details)
        except KleinLabError as error:
            logger.warning("Task %s is tried again later: %s", task.id, error)
            self._let_go(task, wait_s=LEASE_S)

    def _let_go(self, task: Task, *, wait_s: float = 0.0) -> None:
        try:
            self._tasks.let_go(task, wait_s=wait_s)
        except KleinLabError as error:  # then its claim runs out by itself
            logger.warning("Task %s could not be given back: %s", task.id, error)

    def _keep(self) -> None:
        """Renew claims, delete expired results, and now and then what nobody needs."""
        tidied = time.monotonic()
        left_over: frozenset[str] = frozenset()
        while not self._stop.wait(_RENEW_S):
            try:
                self._tasks.renew()
                self._tasks.expire(self._blobs)
                if time.monotonic() - tidied >= _TIDY_S:
                    tidied = time.monotonic()
                    left_over = tidy(self._tasks, self._finetunes, self._blobs, left_over)
            except KleinLabError as error:
                logger.warning("Claims could not be renewed: %s", error)


def tidy(tasks: Tasks, finetunes: Finetunes, blobs: Blobs, before: frozenset[str]) -> frozenset[str]:
    """Delete the files that no finetune and no active task needs, or that are not whole; return those to look at again.

    A file goes when it was found in `before`, the last call, too: a task that was being accepted then has its row now.
    """
    tasks.forget_old()
    remove_leftovers(blobs.folder)
    needed = finetunes.blobs() | tasks.needed_blobs()
    found = frozenset(
        key for suffix in (SUFFIX, REFERENCE_SUFFIX) for key in blobs.keys(suffix, unchanged_s=LEFT_OVER_S)
    )
    for key in (found & before) - needed:
        blobs.remove(key)
    for output_format in OUTPUT_FORMATS:
        for key in blobs.keys(f"{RESULT_SUFFIX}.{output_format}", unchanged_s=LEFT_OVER_S):
            blobs.remove(key)
    return found - before - needed
