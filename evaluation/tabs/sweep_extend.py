"""What can be made of the run on the page: more strengths, more scenes, new checkpoints; and what that takes.

Each makes a new run that has the old cells too: what was rendered before, here or in any other run, is not rendered
again, and the buttons say how many images are new.
"""

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

import gradio as gr

from evaluation.axes import SweepSpec
from evaluation.grid import extend_spec, extend_training, plan
from evaluation.prompt_sets import describe_effort, make_run_sure
from evaluation.report.draw import part
from evaluation.store.records import CellRecord, Run
from evaluation.store.store import Store
from evaluation.strengths import format_strength, format_strengths, note_strengths, parse_strengths, refine_strengths
from evaluation.tabs.page import Caller, Changes, Said, draw_error
from evaluation.tabs.sweep_fields import SweepFields
from evaluation.tabs.sweep_form import RunOnPage, SweepPage
from evaluation.tabs.sweep_run import Shown, SweepRuns
from evaluation.tabs.sweep_view import GOES_ON, draw_buttons
from evaluation.under_way import UnderWay
from lora_runtime.errors import InvalidInput, KleinLabError
from lora_runtime.written import count_of, read_whole

BETWEEN: Final = 3
"""How many values Refine puts between two strengths that are neighbours: the gap becomes four."""

WIDE: Final = Decimal("0.5")
"""Of strengths that are further apart, it halves each gap that is at least so wide, as a part of the widest."""


class SweepExtend:
    """Events that go on from a run at its end."""

    def __init__(self, runs: SweepRuns, fields: SweepFields, store: Store, under_way: UnderWay) -> None:
        self._runs = runs
        self._fields = fields
        self._store = store
        self._under_way = under_way

    def add(self, caller: Caller, page: RunOnPage, said: Said) -> Shown:
        """Run the sweep on the page again with the strengths that are written too."""
        yield from self._extend(caller, page, lambda _: parse_strengths(page.add_values))
        yield {"add_values": ""}

    def refine(self, caller: Caller, page: RunOnPage, said: Said) -> Shown:
        """Run the sweep on the page again with strengths between those of A and B too."""
        yield from self._extend(caller, page, lambda records: find_between(records, page.chosen))

    def make_sure(self, caller: Caller, page: RunOnPage, said: Said) -> Shown:
        """Run the sweep that makes the answer of the one on the page sure."""
        yield from self._make(caller, page, "Making sure …", lambda run: make_run_sure(self._store, run))

    def sweep_new(self, caller: Caller, page: RunOnPage, said: Said) -> Shown:
        """Run the sweep on the page again with the checkpoints that its training run has got since, if any."""
        run = self._find_at_rest(caller, page)
        grown, new = self._find_grown(caller, run)
        if grown is None or not new:
            yield {}
            return
        spec = grown
        yield from self._make(caller, page, f"Sweeping {', '.join(new)} …", lambda _: spec)

    def sweep_due(self, caller: Caller, page: RunOnPage, said: Said) -> Shown:
        """Do so by itself, as long as that is wished."""
        yield from self.sweep_new(caller, page, said) if page.watch else [{}]

    def look(self, caller: Caller, page: RunOnPage, said: Said) -> Changes:
        """Say which checkpoints the training run on the page has got since; they are due at once while it watches.

        While a sweep is under way nothing is: what came meanwhile is found when it has ended.
        """
        if self._under_way.is_rendering(page.run_id):
            return {"sweep_new": gr.update(interactive=False), "due": ""}
        try:
            grown, new = self._find_grown(caller, self._find_at_rest(caller, page))
        except KleinLabError as error:
            return {"grown_hint": draw_error(error), "sweep_new": gr.update(interactive=False), "due": ""}
        names = ", ".join(new)
        text = f"New in the folder: {names}." if new else "The folder is looked at for new checkpoints."
        count = count_of(len(new), "new checkpoint") if new else "new checkpoints"
        return {
            "look": gr.update(active=grown is not None),
            "grown": gr.update(visible=grown is not None),
            "grown_hint": part("hint", text=text),
            "sweep_new": gr.update(interactive=bool(new), value=f"Sweep {count}"),
            "due": names if page.watch else "",
        }

    def note(self, caller: Caller, page: SweepPage, said: Said) -> Changes:
        """When nothing of the run on the page is shown live (any more): what there is, and how it can go on.

        It can be opened again, its speed is known; an error that ended an event before it began took nothing away.
        """
        lists = {**self._fields.list_earlier(caller), **self._fields.echo(caller, page, said)}
        if self._under_way.is_rendering(page.run_id):
            return lists
        if page.run_id is None:
            return {**lists, **draw_buttons()}
        run, records = self._store.look(page.run_id)
        own = run.organization == caller.organization
        buttons = draw_buttons(records=records, own=own)
        at_rest = {name: value for name, value in buttons.items() if name not in GOES_ON}
        goes_on = self.go_on(caller, page, said)
        if page.chosen is None:
            # The grid tells its A and B as soon as it is drawn: what was said of them may be newer than this page.
            goes_on = {name: value for name, value in goes_on.items() if name not in ("refine", "extend_hint")}
        return {**lists, **at_rest, **goes_on}

    def choose(self, caller: Caller, page: RunOnPage, said: Said) -> Changes:
        """Note which cells are A and B, and say what lies between them."""
        chosen = _read_chosen(said.texts)
        return {"chosen": chosen, **self.describe(caller, page.model_copy(update={"chosen": chosen}), said)}

    def go_on(self, caller: Caller, page: RunOnPage, said: Said) -> Changes:
        """Say how the run on the page can go on: with more strengths, with more scenes, with new checkpoints."""
        return {**self.describe(caller, page, said), **self._offer_sure(caller, page), **self.look(caller, page, said)}

    def describe(self, caller: Caller, page: RunOnPage, said: Said) -> Changes:
        """Say on Add and Refine how many images are new; a sweep under way or of somebody else cannot be extended."""
        run = self._find_at_rest(caller, page)
        if run is None:
            idle = gr.update(interactive=False)
            return {"add": idle, "refine": idle, "extend_hint": ""}
        records = self._store.cells(run.id)
        refine, hint = self._describe_refine(run.spec, records, page.chosen)
        add = gr.update(value="Add", interactive=False)
        try:
            if page.add_values.strip():
                new, count = self._count_new(run.spec, records, parse_strengths(page.add_values))
                hint = (note_strengths(page.add_values) or hint) if new else "Those strengths are in the grid already."
                add = gr.update(value=f"Add {_say_count(count)}" if new else "Add", interactive=new)
            shown = part("hint", text=hint)
        except KleinLabError as error:
            shown = draw_error(error)
        return {"refine": refine, "add": add, "extend_hint": shown}

    def _find_at_rest(self, caller: Caller, page: RunOnPage) -> Run | None:
        """The run on the page if it is the caller's and at its end."""
        if page.run_id is None or self._under_way.is_rendering(page.run_id):
            return None
        run = self._store.run(page.run_id)
        return run if run.organization == caller.organization else None

    def _find_grown(self, caller: Caller, run: Run | None) -> tuple[SweepSpec | None, tuple[str, ...]]:
        """The spec of a run with all that its training run has by now, and what is new; None where it cannot grow."""
        training = run.spec.training if run else None
        ready = self._fields.find_ready(caller, training.name) if training else None
        if run is None or training is None or ready is None:
            return None, ()
        known = {stage.sha256 for stage in training.stages}
        if all(each.lora is None or each.lora.sha256 in known for each in ready.checkpoints):
            return run.spec, ()
        grown = extend_training(run.spec, ready)
        stages = grown.training.stages if grown.training else ()
        return grown, tuple(stage.label for stage in stages if stage.sha256 and stage.sha256 not in known)

    def _offer_sure(self, caller: Caller, page: RunOnPage) -> Changes:
        run, hint, sure = self._find_at_rest(caller, page), "", None
        if run is not None:
            try:
                sure = make_run_sure(self._store, run)
                scenes = f"{len(sure.prompts)} prompts × {len(sure.seeds)} seeds at {format_strengths(sure.strengths)}"
                hint = f"{scenes}: {describe_effort(sure, self._store)}."
            except KleinLabError as error:
                hint = str(error)
        return {"sure": gr.update(interactive=sure is not None), "sure_hint": part("hint", text=hint)}

    def _extend(
        self, caller: Caller, page: RunOnPage, find: Callable[[Sequence[CellRecord]], Iterable[Decimal]]
    ) -> Shown:
        def extend(run: Run) -> SweepSpec:
            return extend_spec(run.spec, find(self._store.cells(run.id)))

        yield from self._make(caller, page, "Adding strengths …", extend)

    def _make(self, caller: Caller, page: RunOnPage, words: str, make: Callable[[Run], SweepSpec]) -> Shown:
        """Start the run that `make` makes of the one on the page."""
        yield from self._runs.go(
            caller,
            words,
            lambda: self._under_way.start(
                make(self._runs.find_own(caller, page.run_id)), organization=caller.organization
            ),
        )

    def _describe_refine(
        self, spec: SweepSpec, records: Sequence[CellRecord], chosen: tuple[int, int] | None
    ) -> tuple[dict[str, Any], str]:
        try:
            low, *_, high = _list_between(records, chosen)
            between = find_between(records, chosen)
            _, count = self._count_new(spec, records, between)
        except KleinLabError as error:
            return gr.update(value="Refine", interactive=False), str(error)
        ends = f"{format_strength(low)} to {format_strength(high)}"
        hint = f"Refine adds {format_strengths(between)}: between the cells A and B."
        return gr.update(value=f"Refine {ends}: {_say_count(count)}", interactive=True), hint

    def _count_new(
        self, spec: SweepSpec, records: Sequence[CellRecord], strengths: Iterable[Decimal]
    ) -> tuple[bool, int]:
        """Whether strengths are new to the grid, and how many of their images nobody has rendered yet."""
        wanted = {cell.identity for cell in plan(extend_spec(spec, strengths))}
        wanted -= {record.cell.identity for record in records}
        return bool(wanted), sum(self._store.image(identity) is None for identity in wanted)


def find_between(records: Sequence[CellRecord], chosen: tuple[int, int] | None) -> tuple[Decimal, ...]:
    """Return the strengths that Refine adds: between A and B, none of which the grid has.

    Raises:
        InvalidInput: There are no two cells of different strengths to go between, or nothing is between them.
    """
    strengths = _list_between(records, chosen)
    gaps = [(low, high) for low, high in pairwise(strengths)]
    if len(gaps) > 1:
        widest = max(high - low for low, high in gaps)
        gaps = [(low, high) for low, high in gaps if high - low >= WIDE * widest]
    count = BETWEEN if len(strengths) == 2 else 1
    between = tuple(strength for low, high in gaps for strength in refine_strengths(low, high, count))
    if not between:
        raise InvalidInput("There is no strength between A and B: they are 0.0001 apart.")
    return between


def _list_between(records: Sequence[CellRecord], chosen: tuple[int, int] | None) -> list[Decimal]:
    """The strengths of the grid from that of A to that of B, in order."""
    strengths = {record.cell.position: record.cell.request.strength for record in records}
    found = {strengths[position] for position in chosen or () if position in strengths}
    if len(found) < 2:
        raise InvalidInput("Click two cells of different strengths to refine between them.")
    return sorted({strength for strength in strengths.values() if min(found) <= strength <= max(found)})


def _read_chosen(sides: Sequence[str]) -> tuple[int, int] | None:
    """The page may send anything."""
    try:
        a, b = sides
        return read_whole("A", a), read_whole("B", b)
    except (ValueError, InvalidInput):
        return None


def _say_count(count: int) -> str:
    return count_of(count, "image") if count else "0 new images"
