"""The sweeps of this server that are under way: each goes on until it ends or is stopped, whether anybody looks or not.

A sweep has a thread of its own once its turn has come. So many may be at once at one place; the others wait, in the
order of their starts. Whoever knows the id of a run follows it, with others: each is told how far it is now, and then
what changes. Ending the server stops them with everything done kept; the log remembers that they were under way, and
the next start offers to go on (`list_cut_off`).

A thread has the context of the request that started its sweep, so a GPU that Hugging Face lends is lent to whoever
pressed Run or Continue, on that visitor's quota, be their page open or not.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from contextvars import copy_context
from dataclasses import replace
from typing import Final, TypeAlias

from evaluation.axes import SweepSpec
from evaluation.grid import plan
from evaluation.judge.measure import judge_run
from evaluation.moments import Measured, Moment, note_event
from evaluation.store.records import CellRecord, Origin, Run
from evaluation.store.store import Store
from evaluation.sweep import Planned, SweepEvent, resume_sweep
from lora_runtime.backends.base import Backend
from lora_runtime.errors import KleinLabError, RenderFailed, Unavailable
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.values import Precision

log = logging.getLogger(__name__)

FAULT: Final = "The app failed on this sweep, which is a fault of the app; its log says why. What is done is kept."

ENDING: Final = "The server is ending. Start it again, and continue there."

GOODBYE_S: Final = 20
"""How long the end of the server waits for each sweep to reach its next step."""

_Speed: TypeAlias = tuple[str, Precision, int, int, int]


class Going:
    """A sweep under way, or one that was. `organization` is whose it is; others may follow it too."""

    def __init__(self, moved: threading.Condition, run: Run, moment: Moment) -> None:
        self.run_id = run.id
        self.organization = run.organization
        self.places = frozenset(target.backend for target in run.spec.targets)
        self.cancel = threading.Event()
        self.context = copy_context()
        self.thread: threading.Thread | None = None
        self._moved = moved
        self._moment = moment
        self._version = 0
        self._changed: dict[int, int] = {}

    def look(self, after: int = -1) -> Moment | None:
        """Return how far it is, or None when that is no newer than the moment of version `after`."""
        with self._moved:
            if self._version <= after:
                return None
            changed = {position for position, version in self._changed.items() if version > after}
            return replace(self._moment, records=[*self._moment.records], changed=changed, version=self._version)

    def follow(self) -> Iterator[Moment]:
        """Yield how far it is now, and again each time that it has moved, until it is over."""
        moment = self.look()
        while moment is not None:
            yield moment
            moment = None if moment.over else self._wait(moment.version)

    def _wait(self, version: int) -> Moment | None:
        with self._moved:
            self._moved.wait_for(lambda: self._version > version)
            return self.look(version)

    @property
    def is_rendering(self) -> bool:
        """Whether images of it are still to come."""
        with self._moved:
            return not self._moment.is_last

    def note(self, event: SweepEvent, store: Store) -> None:
        """Take in what the sweep says."""
        seconds = estimate_left(store, event.cells) if isinstance(event, Planned) else None
        with self._moved:
            behind = self._moment.behind
            self._moment.changed = set()
            self._moment = note_event(event, self._moment, lambda _: seconds)
            found = range(len(event.cells)) if isinstance(event, Planned) else self._moment.changed
            self.change(cancelled=self.cancel.is_set(), behind=behind)
            self._changed |= dict.fromkeys(found, self._version)

    def change(self, **facts: object) -> None:
        """Set fields of its moment, and tell whoever follows."""
        with self._moved:
            for name, fact in facts.items():
                setattr(self._moment, name, fact)
            self._version += 1
            self._moved.notify_all()

    def set_place(self, place: int, behind: int) -> None:
        """Say where in the queue it is, and how many wait behind it."""
        if (self._moment.place, self._moment.behind) != (place, behind):
            self.change(place=place, behind=behind)


class UnderWay:
    """The sweeps under way on `backends`; at each of them `at_once` at a time, or all of them for None."""

    def __init__(self, backends: Mapping[str, Backend], store: Store, *, at_once: int | None = None) -> None:
        self._backends = backends
        self._store = store
        self._at_once = at_once
        self._moved = threading.Condition()
        self._going: dict[str, Going] = {}
        """In the order of their starts."""
        self._closed = False

    def start(self, spec: SweepSpec, *, organization: str = LOCAL, origin: Origin = "sweep") -> Going:
        """Log a new run of `spec` and start it, or have it wait for its turn.

        Raises:
            Unavailable: The server is ending.
            StorageFailed: It could not be logged.
        """
        return self.resume(self._store.create_run(spec, plan(spec), organization=organization, origin=origin))

    def resume(self, run_id: str) -> Going:
        """Go on with a run: its cells that have no image, the failed ones again. One under way stays as it is.

        Raises:
            NotFound: There is no such run.
            Unavailable, StorageFailed: As in `start`.
        """
        run, records = self._store.look(run_id)
        planned = Planned(run_id=run_id, spec=run.spec, cells=records)
        with self._moved:
            if self._closed:
                raise Unavailable(ENDING)
            before = self._going.get(run_id)
            if before is not None and before.is_rendering:
                return before
            self._going.pop(run_id, None)
            self._store.set_under_way([run_id], True)
            going = Going(self._moved, run, note_event(planned, None))
            self._going[run_id] = going
            self._deal()
            return going

    def find(self, run_id: str) -> Going | None:
        """Return the run of this id if it is under way, or ended just now and is being measured."""
        with self._moved:
            return self._going.get(run_id)

    def is_rendering(self, run_id: str | None) -> bool:
        """Whether images of a run are still to come."""
        going = self.find(run_id) if run_id else None
        return going is not None and going.is_rendering

    def stop(self, run_id: str) -> None:
        """Stop a run at its next step, or take it out of the queue, if it is under way; what is done stays."""
        with self._moved:
            going = self._going.get(run_id)
            if going is not None and going.is_rendering:
                going.cancel.set()
                going.change(cancelled=True)
                self._deal()

    def list_cut_off(self, organization: str) -> tuple[Run, ...]:
        """Return the runs that were under way when a server ended, newest first."""
        found = self._store.history(organization=organization, under_way=True)
        with self._moved:
            return tuple(run for run, _ in found if run.id not in self._going)

    def leave(self, organization: str) -> None:
        """Offer none of the runs that were cut off any more; they can still be opened and continued."""
        self._store.set_under_way([run.id for run in self.list_cut_off(organization)], False)

    def close(self) -> None:
        """Stop all of them at their next step, and wait for that; the log remembers that they are not at their end."""
        with self._moved:
            self._closed = True
            threads = [going.thread for going in self._going.values() if going.thread]
            for going in self._going.values():
                going.cancel.set()
                if going.thread is None:
                    going.change(error=Unavailable(ENDING), over=True)
        for thread in threads:
            thread.join(GOODBYE_S)

    def _deal(self) -> None:
        """Begin with what has its turn, and say where in the queue the others are. A stopped one does not wait."""
        taken, waiting = Counter[str](), Counter[str]()
        rendering = [going for going in self._going.values() if going.is_rendering]
        for going in rendering:
            busy = self._at_once is not None and any(taken[name] >= self._at_once for name in going.places)
            if going.thread is None and (not busy or going.cancel.is_set()) and not self._closed:
                self._begin(going)
            taken.update(going.places)
            waiting.update(going.places if going.thread is None else ())
        before = Counter[str]()
        for going in rendering:
            before.update(going.places if going.thread is None else ())
            place = max(before[name] for name in going.places) if going.thread is None else 0
            going.set_place(place, max(waiting[name] for name in going.places) - place)

    def _begin(self, going: Going) -> None:
        name = f"klein-{going.run_id}"
        going.thread = threading.Thread(target=going.context.run, args=(self._run, going), name=name, daemon=True)
        going.thread.start()

    def _run(self, going: Going) -> None:
        """Render a run to its end, let the next one begin, and measure what came of this one."""
        try:
            self._render(going)
        except KleinLabError as error:
            going.change(error=error)
        except Exception:
            log.exception("The sweep %s ended early", going.run_id)
            going.change(error=RenderFailed(FAULT))
        with self._moved:
            self._deal()
        try:
            measured = None if going.cancel.is_set() else self._measure(going)
        finally:
            with self._moved:
                if self._going.get(going.run_id) is going:
                    del self._going[going.run_id]
        going.change(measured=measured, over=True)

    def _render(self, going: Going) -> None:
        try:
            sweep = resume_sweep(going.run_id, backend=self._backends, store=self._store, cancel=going.cancel)
            with closing(sweep) as events:
                for event in events:
                    going.note(event, self._store)
        finally:
            if not self._closed:
                self._store.set_under_way([going.run_id], False)

    def _measure(self, going: Going) -> Measured | None:
        """Say which strength, which may take a model and seconds; nothing of a run that an error ended."""
        moment = going.look()
        if moment is None or moment.finished is None:
            return None
        try:
            return Measured(answers=judge_run(self._store, going.run_id))
        except KleinLabError as error:
            return Measured(problem=str(error))
        except Exception:
            log.exception("The sweep %s could not be measured", going.run_id)
            return Measured(problem=FAULT)


def estimate_left(store: Store, records: tuple[CellRecord, ...]) -> float | None:
    """Return the seconds of the cells that are left, where the last ones like them say it."""
    left = Counter(_speed_key(record) for record in records if record.state != "done")
    known = {key: store.seconds_per_image(*key) for key in left}
    if None in known.values():
        return None
    return sum((known[key] or 0) * count for key, count in left.items())


def _speed_key(record: CellRecord) -> _Speed:
    request = record.cell.request
    return request.weights, request.precision, request.width, request.height, request.steps
