"""What a sweep under way, and one at its end, look like on the page: status line, verdict, grid, buttons.

Each draw says all of it, so a page that is busy, or comes late, misses nothing.
"""

from collections.abc import Sequence
from typing import Final

import gradio as gr

from evaluation.axes import Training
from evaluation.judge.answer import Answer
from evaluation.moments import Moment
from evaluation.report.animation import moves
from evaluation.report.cards import WAITING, view_answers, view_verdict
from evaluation.report.draw import draw, part
from evaluation.report.heat_map import view_heat
from evaluation.store.records import CellRecord, Run, Verdict
from evaluation.store.store import Store
from evaluation.tabs.live_grid import LiveGrid, draw_grid
from evaluation.tabs.page import Changes, draw_error

SOMEBODY_ELSES: Final = "somebody else’s sweep, to look at: Run sweep makes one of your own"

GOES_ON: Final = ("add", "refine", "sure")
"""The buttons that make more of a run at its end."""


class LiveRun:
    """A run that one page follows; `own`: it may change it."""

    def __init__(self, store: Store, *, own: bool) -> None:
        self._store = store
        self._own = own
        self._grid: LiveGrid | None = None

    def draw(self, moment: Moment) -> Changes:
        """Return all that the page shows of it at this moment."""
        if moment.is_last:
            return self._draw_end(moment)
        if self._grid is None:
            self._grid = draw_grid(moment.planned.spec, moment.records, running=True, own=self._own)
        else:
            self._grid = self._grid.with_cells(moment.records[position] for position in moment.changed)
        return {
            "grid": self._grid.value(),
            "verdict": draw_outcome(WAITING),
            "status": _draw_status(moment, own=self._own),
            **draw_buttons(running=True, stopping=moment.cancelled, own=self._own),
        }

    def _draw_end(self, moment: Moment) -> Changes:
        run, records = self._store.look(moment.planned.run_id)
        answers, problem = (moment.measured.answers, moment.measured.problem) if moment.measured else ((), "")
        whole = moment.finished is not None and not moment.finished.stopped and not _count(records, "failed")
        words = [f"done in {moment.seconds_passed():.1f} s"] if whole else say_state(records)
        buttons = draw_buttons(records=records, own=self._own)
        measuring = moment.finished is not None and not moment.over and not moment.finished.stopped
        return {
            "grid": draw_grid(run.spec, records, own=self._own, answers=answers).value(),
            "verdict": draw_outcome(
                run.verdict or WAITING, answers, training=run.spec.training, measuring=measuring, problem=problem
            ),
            "status": draw_error(moment.error) if moment.error else draw_progress(records, words, own=self._own),
            # What it can go on with is said already while it is measured, by others.
            **{name: value for name, value in buttons.items() if name not in GOES_ON},
        }


def draw_ended(
    run: Run, records: Sequence[CellRecord], answers: Sequence[Answer], problem: str, *, own: bool
) -> Changes:
    """Return what the page shows of a run that is not under way."""
    return {
        "grid": draw_grid(run.spec, records, own=own, answers=answers).value(),
        "verdict": draw_outcome(run.verdict or WAITING, answers, training=run.spec.training, problem=problem),
        "status": draw_progress(records, say_state(records), own=own),
        **draw_buttons(records=records, own=own),
    }


def draw_outcome(
    verdict: Verdict,
    answers: Sequence[Answer] = (),
    *,
    training: Training | None = None,
    measuring: bool = False,
    problem: str = "",
) -> str:
    """Return what a sweep says when it ends, as cards; a training run has the heat map of its evidence below."""
    said = view_answers(verdict, answers, training=training, measuring=measuring, problem=problem)
    heat = None if measuring else view_heat(training, answers)
    return draw("outcome.html", cards=(view_verdict(verdict), *said), heat=heat, live=True)


def draw_buttons(
    *, running: bool = False, stopping: bool = False, records: Sequence[CellRecord] = (), own: bool = True
) -> Changes:
    """Return what the buttons are. A visitor may run a sweep of their own while they look at somebody else's."""
    left, failed = _count(records, "pending"), _count(records, "failed")
    label = f"Continue: {left} left" if left else f"Retry {failed} failed" if failed else "Continue"
    busy, there = running and own, not running and _count(records, "done") > 0
    return {
        "run": gr.update(interactive=not busy, value="Running …" if busy else "Run sweep"),
        "stop": gr.update(interactive=busy and not stopping, value="Stopping …" if busy and stopping else "Stop"),
        "resume": gr.update(interactive=not running and own and bool(left or failed), value=label),
        "download": gr.update(interactive=there),
        "animation": gr.update(interactive=there and moves(records)),
        **{name: gr.update(interactive=False) for name in GOES_ON},
    }


def say_state(records: Sequence[CellRecord]) -> list[str]:
    """Say what is missing of a run that is not under way."""
    left, failed = _count(records, "pending"), _count(records, "failed")
    words = [f"{failed} failed: Retry tries them again"] if failed else []
    return [*words, f"stopped, {left} left: Continue renders only those"] if left else words


def draw_progress(
    records: Sequence[CellRecord], words: Sequence[str], *, running: bool = False, own: bool = True
) -> str:
    """Return the one live line of a run."""
    done, total = _count(records, "done"), len(records)
    line = " · ".join([f"{done} of {total}", *words, *(() if own else (SOMEBODY_ELSES,))])
    return part("progress", text=line, done=done, total=total, running=running)


def _draw_status(moment: Moment, *, own: bool) -> str:
    """Say "5 of 8 · step 3 of 4 · about 4 s left · 1 more waits"."""
    left = moment.seconds_left()
    words = []
    if moment.place:
        words.append(f"waits, number {moment.place} in the queue")
    elif moment.is_first:
        words.append("the model starts")
    if moment.stepped:
        words.append(f"step {moment.stepped.step} of {moment.stepped.steps}")
        if moment.stepped.engines > 1:
            words.append(f"{moment.stepped.engines} engines")
    if moment.begun and left is not None and left > 0:
        words.append(f"about {max(1, round(left))} s left")
    if moment.behind:
        words.append(f"{moment.behind} more {'waits' if moment.behind == 1 else 'wait'}")
    return draw_progress(moment.records, words, running=True, own=own)


def _count(records: Sequence[CellRecord], state: str) -> int:
    return sum(record.state == state for record in records)
