"""Tell the webhook of a task that it has ended: signed, retried, written down.

The body is what a poll would say, with `timestamp`, and `error` and `message` where there is no result. BFL names two
ways to know the sender, so both are there: `X-Webhook-Secret` is the secret itself, `X-BFL-Signature` the HMAC-SHA256
of the raw body with it.
"""

import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Sequence
from typing import Final

from lora_runtime.errors import KleinLabError
from lora_runtime.server.deliveries import Attempt, Deliveries, Delivery
from lora_runtime.server.outbound import Outbound
from lora_runtime.server.replies import show_task, show_time
from lora_runtime.server.signing import ResultUrls
from lora_runtime.server.tasks import Status, Task, Tasks

logger = logging.getLogger(__name__)

ANSWER_S: Final = 30.0
"""How long a receiver may take. Source: BFL's webhook guide."""

_LOOK_S: Final = 1.0
_CLOSE_S: Final = 5.0


class Webhooks:
    """Delivers what is owed, each in a thread of its own: a receiver that hangs takes the turns of nobody else."""

    def __init__(self, deliveries: Deliveries, tasks: Tasks, urls: ResultUrls, outbound: Outbound) -> None:
        self._deliveries = deliveries
        self._tasks = tasks
        self._urls = urls
        self._outbound = outbound
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._woken = False
        self._under_way: dict[threading.Thread, Delivery] = {}
        self._thread = threading.Thread(target=self._dispatch, name="klein-webhooks", daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def wake(self) -> None:
        """Look now: a task has ended."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop; a delivery that still waits for its receiver is tried again at the next start."""
        self._stop.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join()
        end = time.monotonic() + _CLOSE_S
        for thread in tuple(self._under_way):
            thread.join(max(0.0, end - time.monotonic()))

    def _dispatch(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                self._woken = False
                under_way = tuple(self._under_way.values())
            delivery, wait_s = self._claim(under_way)
            if delivery is None:
                with self._changed:
                    self._changed.wait_for(lambda: self._woken or self._stop.is_set(), timeout=wait_s)
                continue
            thread = threading.Thread(target=self._deliver, args=(delivery,), name="klein-webhook", daemon=True)
            with self._changed:
                self._under_way[thread] = delivery
            thread.start()

    def _claim(self, under_way: Sequence[Delivery]) -> tuple[Delivery | None, float]:
        """What is to be tried now, or how long to wait."""
        try:
            delivery = None if self._stop.is_set() else self._deliveries.claim(under_way)
            return delivery, _LOOK_S if delivery else self._deliveries.wait_s(_LOOK_S)
        except KleinLabError as error:
            logger.warning("No webhook could be taken: %s", error)
            return None, _LOOK_S

    def _deliver(self, delivery: Delivery) -> None:
        try:
            task = self._tasks.find(delivery.task_id)
            attempt = Attempt(at=time.time(), error="The result expired before it could be told.")
            if task is not None and task.webhook_url is not None:
                attempt = self._post(task, task.webhook_url)
            after = self._deliveries.record(delivery, attempt)
            if after.state == "dropped":
                logger.warning("The webhook of task %s was given up: %s", after.task_id, _reason(attempt))
        except KleinLabError as error:  # it is taken again when its hold runs out
            logger.warning("The webhook of task %s is tried again later: %s", delivery.task_id, error)
        finally:
            with self._changed:
                del self._under_way[threading.current_thread()]
                self._woken = True
                self._changed.notify_all()

    def _post(self, task: Task, url: str) -> Attempt:
        at = time.time()
        try:
            body = make_body(task, self._urls, at)
            status = self._outbound.post(url, body, make_headers(body, task.webhook_secret), timeout_s=ANSWER_S)
        except KleinLabError as error:
            return Attempt(at=at, error=str(error))
        except Exception:  # an attempt is written down whatever happens in it, or it would be made for ever
            logger.exception("The webhook of task %s could not be sent", task.id)
            return Attempt(at=at, error="The server failed on this webhook. Its log says why.")
        return Attempt(at=at, status=status)


def make_body(task: Task, urls: ResultUrls, at: float) -> bytes:
    """The raw body for a task that has ended."""
    body = show_task(task, urls, task.base_url).model_dump(mode="json") | {"timestamp": show_time(at)}
    if task.status is not Status.READY:
        reason = (task.details or {}).get("error", task.status.value)
        body |= {"error": task.status.value, "message": reason}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def make_headers(body: bytes, secret: str | None) -> dict[str, str]:
    """Both ways to know the sender; without a secret there are none."""
    if not secret:
        return {}
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"X-Webhook-Secret": secret, "X-BFL-Signature": f"sha256={signature}"}


def _reason(attempt: Attempt) -> str:
    return attempt.error or f"the answer was {attempt.status}"
