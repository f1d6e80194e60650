"""From a queue in the database to threads of this process: whatever waits there is claimed and worked on.

A thread takes all that there is room for when it is woken, when something ended, and now and then, as other processes
put things into the queue too. Each thing is worked on in a thread of its own, so that one that hangs keeps nobody else
waiting.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from lora_runtime.errors import KleinLabError

logger = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""How often the queue is looked at for what another process put there."""

T = TypeVar("T")


class Dispatcher(Generic[T]):
    """Works on what `claim` returns, which is given what is under way and for how many there is room.

    At most `most` at once; what is to be `alone` is claimed alone, and shares its time with nothing else. `wait_s` is
    how long to wait, up to a limit, when there is nothing to claim. `stopping` is set when it closes.
    """

    def __init__(
        self,
        name: str,
        claim: Callable[[Sequence[T], int], Sequence[T]],
        work: Callable[[T], None],
        *,
        most: int = sys.maxsize,
        alone: Callable[[T], bool] = lambda _item: False,
        wait_s: Callable[[float], float] = lambda most_s: most_s,
    ) -> None:
        self._name = name
        self._claim = claim
        self._work = work
        self._most = most
        self._alone = alone
        self._wait_s = wait_s
        self._under_way: dict[threading.Thread, T] = {}
        self._changed = threading.Condition()
        self._woken = False
        self._thread = threading.Thread(target=self._dispatch, name=f"klein-{name}s", daemon=True)
        self.stopping = threading.Event()

    @property
    def under_way(self) -> tuple[T, ...]:
        """What is being worked on."""
        with self._changed:
            return tuple(self._under_way.values())

    def start(self) -> None:
        """Begin to claim."""
        self._thread.start()

    def wake(self) -> None:
        """Look now: something was put into the queue."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self, *, patience_s: float | None = None) -> None:
        """Claim no more, and wait for what is under way; at most `patience_s` where it is given."""
        self.stopping.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join()
        end = None if patience_s is None else time.monotonic() + patience_s
        for thread in tuple(self._under_way):
            thread.join(None if end is None else max(0.0, end - time.monotonic()))

    def _dispatch(self) -> None:
        while not self.stopping.is_set():
            self._wait_for_room(self._most)
            items, wait_s = self._look()
            if not items:
                with self._changed:
                    self._changed.wait_for(lambda: self._woken or self.stopping.is_set(), timeout=wait_s)
                continue
            alone = self._alone(items[0])
            if alone:
                self._wait_for_room(1)
            for item in items:
                thread = threading.Thread(target=self._run, args=(item,), name=f"klein-{self._name}", daemon=True)
                with self._changed:
                    self._under_way[thread] = item
                thread.start()
            if alone:
                self._wait_for_room(1)

    def _wait_for_room(self, most: int) -> None:
        """Wait until fewer than `most` are under way, or the end."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._under_way) < most or self.stopping.is_set())
            self._woken = False

    def _look(self) -> tuple[Sequence[T], float]:
        """What is next, or how long to wait."""
        if self.stopping.is_set():
            return (), 0.0
        try:
            under_way = self.under_way
            items = self._claim(under_way, self._most - len(under_way))
            return items, 0.0 if items else self._wait_s(LOOK_S)
        except KleinLabError as error:
            logger.warning("No %s could be taken: %s", self._name, error)
            return (), LOOK_S

    def _run(self, item: T) -> None:
        try:
            self._work(item)
        finally:
            with self._changed:
                del self._under_way[threading.current_thread()]
                self._woken = True
                self._changed.notify_all()
