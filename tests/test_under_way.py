"""Sweeps under way: followed by several, queued, stopped, left, cut off and gone on with."""

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from evaluation.moments import Moment
from evaluation.store.store import Store
from evaluation.under_way import ENDING, FAULT, Going, UnderWay
from lora_runtime.errors import KleinLabError, RenderFailed, Unavailable
from lora_runtime.values import RenderRequest
from tests.drawing_backend import DrawingBackend, make_drawing_spec


class Gate:
    """Holds the backend before a strength until it is opened; notes the strengths that came."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.at = Decimal("0.5")

    def __call__(self, request: RenderRequest) -> KleinLabError | None:
        if request.strength == self.at:
            self.reached.set()
            assert self.open.wait(60)
        return None


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def start(store: Store, gate: Gate) -> Iterator[Callable[..., UnderWay]]:
    """Make services of sweeps, which end with the test."""
    made: list[UnderWay] = []

    def make(*backends: DrawingBackend, **options: Any) -> UnderWay:
        named = {backend.name: backend for backend in backends or (DrawingBackend(fails=gate),)}
        made.append(UnderWay(named, store, **options))
        return made[-1]

    yield make
    gate.open.set()
    for each in made:
        each.close()


def last(going: Going) -> Moment:
    *_, moment = going.follow()
    return moment


def states(moment: Moment) -> list[str]:
    return [record.state for record in moment.records]


def test_two_who_follow_agree_and_one_who_comes_late_sees_all(start: Callable[..., UnderWay], gate: Gate) -> None:
    going = start().start(make_drawing_spec(), organization="acme")
    early = going.follow()
    seen = {0: next(early)}
    assert gate.reached.wait(60)
    late = going.follow()
    halfway = next(late)
    assert states(halfway) == ["done", "pending", "pending"]
    gate.open.set()
    changed = {0} if states(seen[0])[0] == "done" else set()
    for moment in early:
        changed |= moment.changed
        seen[moment.version] = moment
    assert changed == {0, 1, 2}
    *_, end = late
    assert (end.version, states(end)) == (max(seen), ["done"] * 3)
    assert end.finished == seen[end.version].finished
    assert end.measured is not None
    assert end.measured == seen[end.version].measured
    assert going.organization == "acme"


def test_it_goes_on_when_nobody_looks(start: Callable[..., UnderWay], store: Store, gate: Gate) -> None:
    under_way = start()
    going = under_way.start(make_drawing_spec())
    followed = going.follow()
    next(followed)
    followed.close()  # type: ignore[attr-defined]  # a page that closes
    assert under_way.find(going.run_id) is going
    gate.open.set()
    assert last(going).over
    assert store.run(going.run_id).status == "done"
    assert under_way.find(going.run_id) is None
    assert not under_way.list_cut_off("local")


WHO: ContextVar[str] = ContextVar("who")


def test_a_sweep_renders_in_the_name_of_whoever_started_it_or_went_on_with_it(start: Callable[..., UnderWay]) -> None:
    seen: list[str] = []
    ready = threading.Event()

    def fails(request: RenderRequest) -> KleinLabError | None:
        seen.append(WHO.get("nobody"))
        if request.strength == Decimal("0.5"):
            ready.wait(60)
        return None

    under_way = start(DrawingBackend(fails=fails), at_once=1)
    going = copy_context().run(lambda: (WHO.set("one"), under_way.start(make_drawing_spec()))[1])
    while len(seen) < 3:
        time.sleep(0.01)
    under_way.stop(going.run_id)
    ready.set()
    last(going)
    copy_context().run(lambda: (WHO.set("two"), last(under_way.resume(going.run_id))))
    assert seen == ["one", "one", "one", "two"], "a GPU is lent to one visitor, not to the page that is open"


def test_stop_keeps_what_is_done_and_it_can_go_on(start: Callable[..., UnderWay], store: Store, gate: Gate) -> None:
    backend = DrawingBackend(fails=gate)
    under_way = start(backend)
    going = under_way.start(make_drawing_spec())
    assert gate.reached.wait(60)
    under_way.stop(going.run_id)
    assert (going.look() or last(going)).cancelled
    gate.open.set()
    end = last(going)
    assert end.finished is not None
    assert end.finished.stopped
    assert states(end) == ["done", "done", "pending"]
    assert not under_way.list_cut_off("local"), "a person stopped it"
    under_way.stop(going.run_id)
    under_way.stop("run-nope")
    rendered = len(backend.rendered)
    again = under_way.resume(going.run_id)
    assert states(last(again)) == ["done"] * 3
    assert [request.strength for request in backend.rendered[rendered:]] == [Decimal(1)]


def test_what_waits_says_its_place_and_one_that_is_stopped_leaves_the_queue(
    start: Callable[..., UnderWay], store: Store, gate: Gate
) -> None:
    under_way = start(at_once=1)
    first, second, third = (under_way.start(make_drawing_spec(seeds=[seed])) for seed in (7, 8, 9))
    assert gate.reached.wait(60)

    def places() -> list[tuple[int, int]]:
        moments = [going.look() for going in (first, second, third)]
        return [(moment.place, moment.behind) for moment in moments if moment]

    assert places() == [(0, 2), (1, 1), (2, 0)]
    assert under_way.resume(second.run_id) is second
    assert places() == [(0, 2), (1, 1), (2, 0)], "it waits already, where it did"
    under_way.stop(second.run_id)
    stopped = last(second)
    assert stopped.finished is not None
    assert stopped.finished.stopped
    assert states(stopped) == ["pending"] * 3
    assert [places()[0], places()[2]] == [(0, 1), (1, 0)]
    gate.open.set()
    assert states(last(third)) == ["done"] * 3
    assert states(last(first)) == ["done"] * 3


def test_another_place_is_not_waited_for(start: Callable[..., UnderWay], gate: Gate) -> None:
    there = DrawingBackend()
    there.name = "there"
    under_way = start(DrawingBackend(fails=gate), there, at_once=1)
    held = under_way.start(make_drawing_spec())
    assert gate.reached.wait(60)
    spec = make_drawing_spec()
    elsewhere = replace(spec, targets=tuple(replace(target, backend="there") for target in spec.targets))
    assert states(last(under_way.start(elsewhere))) == ["done"] * 3
    assert held.is_rendering


@pytest.mark.parametrize(
    ("fault", "said"), [(ZeroDivisionError("nobody knows"), FAULT), (RenderFailed("The device has gone."), "has gone")]
)
def test_a_fault_ends_its_sweep_with_words_and_the_next_one_begins(
    start: Callable[..., UnderWay], store: Store, fault: Exception, said: str
) -> None:
    def fails(request: RenderRequest) -> KleinLabError | None:
        if request.seed == 7 and request.strength == 1:
            raise fault
        return None

    under_way = start(DrawingBackend(fails=fails), at_once=1)
    broken, whole = (under_way.start(make_drawing_spec(seeds=[seed])) for seed in (7, 8))
    end = last(broken)
    assert said in str(end.error)
    assert (end.is_last, end.over, end.measured) == (True, True, None)
    assert [record.state for record in store.cells(broken.run_id)] == ["done", "done", "pending"]
    assert states(last(whole)) == ["done"] * 3
    assert not under_way.list_cut_off("local"), "no server ended"


def test_a_judge_that_fails_leaves_the_pictures(
    start: Callable[..., UnderWay], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Unavailable("There is no judge here.")

    monkeypatch.setattr("evaluation.under_way.judge_run", refuse)
    gate.open.set()
    end = last(start().start(make_drawing_spec()))
    assert states(end) == ["done"] * 3
    assert end.measured is not None
    assert end.measured.problem == "There is no judge here."


def test_a_server_that_ends_keeps_what_is_done_and_the_next_one_offers_to_go_on(
    start: Callable[..., UnderWay], store: Store, gate: Gate
) -> None:
    backend = DrawingBackend(fails=gate)
    first = start(backend, at_once=1)
    going = first.start(make_drawing_spec())
    assert gate.reached.wait(60)
    waiting = first.start(make_drawing_spec(seeds=[8]), organization="acme")
    assert not first.list_cut_off("local"), "it is under way"
    closing = threading.Thread(target=first.close)
    closing.start()
    assert str(last(waiting).error) == ENDING
    gate.open.set()
    closing.join(60)
    assert states(last(going)) == ["done", "done", "pending"]
    with pytest.raises(Unavailable, match="ending"):
        first.resume(going.run_id)
    second = start(backend)
    assert [run.id for run in second.list_cut_off("local")] == [going.run_id]
    assert [run.id for run in second.list_cut_off("acme")] == [waiting.run_id]
    assert second.find(going.run_id) is None, "nothing starts unasked"
    assert states(last(second.resume(going.run_id))) == ["done"] * 3
    assert len(backend.rendered) == 4, "three cells and the control, each once"
    second.leave("acme")
    assert not second.list_cut_off("local") + second.list_cut_off("acme")
