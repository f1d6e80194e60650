"""A run is followed from its plan to its end, whatever that is."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evaluation.store.store import Store
from evaluation.sweep import SweepEvent, run_sweep
from evaluation.tabs.follow import Runs
from lora_runtime.errors import InvalidInput, RenderFailed
from lora_runtime.settings import Settings
from tests.drawing_backend import DrawingBackend, make_drawing_spec

Start = Callable[[threading.Event], Iterator[SweepEvent]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    store = Store.open(Settings(home=tmp_path))
    yield lambda cancel: run_sweep(make_drawing_spec(), backend=DrawingBackend(), store=store, cancel=cancel)
    store.close()


def test_a_run_is_shown_planned_going_and_ended(start: Start) -> None:
    runs = Runs()
    firsts, changed, last = [], set(), None
    for moment in runs.follow("one", start, estimate=lambda planned: 10.0 * len(planned.cells)):
        assert runs.is_running("one")
        firsts.append(moment.is_first)
        changed |= moment.changed
        last = moment
    assert last is not None
    assert last.finished is not None
    assert (firsts[0], any(firsts[1:]), last.is_last) == (True, False, True)
    assert changed == {0, 1, 2}
    assert (last.count("done"), last.count("pending"), last.cancelled) == (3, 0, False)
    assert 0 < (last.seconds_left() or 0) < 30
    assert not runs.is_running("one")


@pytest.mark.parametrize("how", ["stop", "another"])
def test_a_page_has_one_run_which_stops_with_what_it_has(start: Start, how: str) -> None:
    runs = Runs()
    followed = runs.follow("one", start)
    first = next(followed)
    assert first.is_first
    if how == "stop":
        runs.stop("one")
        runs.stop("a page without a run")
    else:
        other = runs.follow("one", start)
        next(other)
    *_, last = followed
    assert last.finished is not None
    assert last.finished.stopped
    assert last.cancelled
    if how == "another":
        assert runs.is_running("one"), "the end of the old run is not that of the new one"
        other.close()
    assert not runs.is_running("one")


def test_a_run_that_fails_says_so_at_its_end_or_before_its_plan(start: Start) -> None:
    def fail(cancel: threading.Event) -> Iterator[SweepEvent]:
        yield next(iter(start(cancel)))
        raise RenderFailed("The device has gone.")

    def refuse(_: threading.Event) -> Iterator[SweepEvent]:
        raise InvalidInput("Seed: write a number.")
        yield

    runs = Runs()
    *_, last = runs.follow("one", fail)
    assert str(last.error) == "The device has gone."
    assert last.is_last
    with pytest.raises(InvalidInput):
        next(runs.follow("one", refuse))
    assert not runs.is_running("one")
