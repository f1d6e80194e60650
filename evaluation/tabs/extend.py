"""More strengths for a sweep that is there: values that are written, or some between the two cells A and B.

The new run has the old strengths and the new ones. Cells that were rendered before, here or in any other run, are not
rendered again; how many are new is said on the button.
"""

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any, Final

import gradio as gr

from evaluation.axes import SweepSpec
from evaluation.grid import extend_spec, plan
from evaluation.store.store import CellRecord, Store
from evaluation.strengths import format_strength, format_strengths, note_strengths, parse_strengths, refine_strengths
from evaluation.tabs import markup
from evaluation.tabs.parts import SweepParts, Updates
from evaluation.tabs.run import RunHandlers
from lora_runtime.errors import InvalidInput, KleinLabError
from lora_runtime.written import read_whole

BETWEEN: Final = 3
"""How many values Refine puts between two strengths: each gap becomes four."""

Chosen = tuple[int, int] | None
"""The positions of the cells A and B."""


class ExtendHandlers:
    """Events of Add and Refine."""

    def __init__(self, store: Store, parts: SweepParts, runs: RunHandlers) -> None:
        self._store = store
        self._parts = parts
        self._runs = runs

    def choose(self, run_id: str | None, text: str, event: gr.EventData, request: gr.Request) -> Updates:
        """Note which cells are A and B, and say what lies between them."""
        chosen = _read_chosen(event._data)
        return {self._parts.chosen: chosen, **self.describe(run_id, text, chosen, request)}

    def rate(self, run_id: str | None, event: gr.EventData, session: str) -> Updates:
        """Keep the rating of a cell; the page shows it already."""
        data = event._data if isinstance(event._data, dict) else {}
        try:
            position, rating = (read_whole("Rating", data.get(name)) for name in ("position", "rating"))
            self._runs.rate(run_id, position, rating, session)
        except KleinLabError as error:
            return {self._parts.status: markup.draw_error(error)}
        return {self._parts.status: gr.skip()}

    def describe(self, run_id: str | None, text: str, chosen: Chosen, request: gr.Request) -> Updates:
        """Say on both buttons how many images are new; a sweep under way or of somebody else cannot be extended."""
        parts = self._parts
        session = request.session_hash
        if run_id is None or self._runs.is_running(session) or not self._runs.can_change(run_id, session):
            idle = gr.update(interactive=False)
            return {parts.add: idle, parts.refine: idle, parts.extend_hint: ""}
        run, records = self._store.look(run_id)
        spec = run.spec
        updates, hint = self._describe_refine(spec, records, chosen)
        if not text.strip():
            add = gr.update(value="Add", interactive=False)
            return {**updates, parts.add: add, parts.extend_hint: markup.draw_hint(hint)}
        try:
            count = self._count_new(spec, records, parse_strengths(text))
        except KleinLabError as error:
            add = gr.update(value="Add", interactive=False)
            return {**updates, parts.add: add, parts.extend_hint: markup.draw_error(error)}
        add = gr.update(value=f"Add {_images(count)}" if count else "Add", interactive=count > 0)
        hint = note_strengths(text) or hint if count else "Those strengths are in the grid already."
        return {**updates, parts.add: add, parts.extend_hint: markup.draw_hint(hint)}

    def add(self, run_id: str | None, text: str, session: str) -> Iterator[Updates]:
        """Run the sweep again with the strengths of `text` too."""
        parts = self._parts
        added = yield from self._runs.extend(run_id, lambda _: parse_strengths(text), session)
        if added:
            yield {parts.add_values: ""}

    def refine(self, run_id: str | None, chosen: Chosen, session: str) -> Iterator[Updates]:
        """Run the sweep again with strengths between those of A and B too."""
        yield from self._runs.extend(run_id, lambda records: find_between(records, chosen), session)

    def _describe_refine(
        self, spec: SweepSpec, records: Sequence[CellRecord], chosen: Chosen
    ) -> tuple[dict[Any, Any], str]:
        refine = self._parts.refine
        try:
            low, high = _ends(records, chosen)
            between = find_between(records, chosen)
            count = self._count_new(spec, records, between)
        except KleinLabError as error:
            return {refine: gr.update(value="Refine", interactive=False)}, str(error)
        label = f"Refine {format_strength(low)} to {format_strength(high)}"
        if not count:
            hint = f"Between {format_strength(low)} and {format_strength(high)} everything is rendered."
            return {refine: gr.update(value=label, interactive=False)}, hint
        hint = f"Refine adds {format_strengths(between)}: between the cells A and B."
        return {refine: gr.update(value=f"{label}: {_images(count)}", interactive=True)}, hint

    def _count_new(self, spec: SweepSpec, records: Sequence[CellRecord], strengths: Iterable[Decimal]) -> int:
        """How many images of the new strengths nobody has rendered yet; what the old ones lack does not count."""
        wanted = {cell.identity for cell in plan(extend_spec(spec, strengths))}
        wanted -= {record.cell.identity for record in records}
        return sum(self._store.image(identity) is None for identity in wanted)


def find_between(records: Sequence[CellRecord], chosen: Chosen) -> tuple[Decimal, ...]:
    """Return the strengths that Refine adds.

    Raises:
        InvalidInput: There are no two cells of different strengths to go between.
    """
    low, high = _ends(records, chosen)
    between = refine_strengths(low, high, BETWEEN)
    if not between:
        raise InvalidInput("There is no strength between A and B: they are 0.0001 apart.")
    return between


def _ends(records: Sequence[CellRecord], chosen: Chosen) -> tuple[Decimal, Decimal]:
    strengths = {record.cell.position: record.cell.request.strength for record in records}
    found = {strengths[position] for position in chosen or () if position in strengths}
    if len(found) < 2:
        raise InvalidInput("Click two cells of different strengths to refine between them.")
    low, high = sorted(found)
    return low, high


def _read_chosen(data: Any) -> Chosen:
    """The page may send anything."""
    given = data if isinstance(data, dict) else {}
    a, b = (given.get(side) for side in ("a", "b"))
    try:
        return read_whole("A", a), read_whole("B", b)
    except InvalidInput:
        return None


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
