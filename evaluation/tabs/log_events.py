"""What happens in the Comparison tab: filter, sort, open, rate, compare, delete, undo, take away.

Every event reads the store again, so what was rendered meanwhile is there too, and only ever the visitor's own rows: an
id that the page sends is looked up among those.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import gradio as gr

from evaluation.captions import tell_records_apart
from evaluation.judge.answer import answer_cells, answer_run
from evaluation.log import (
    PAGE_ROWS,
    LogView,
    Page,
    find_record,
    make_page,
    read_key,
    read_view,
    sort_view,
    write_key,
)
from evaluation.report.files import TABLES
from evaluation.report.html import html_report
from evaluation.store.records import CellKey, CellRecord
from evaluation.store.store import Store
from evaluation.tabs import markup
from evaluation.tabs.log import draw_bar, draw_log
from evaluation.tabs.log_detail import draw_detail, draw_facts, draw_rating, draw_side_by_side
from evaluation.tabs.parts import Updates, Values
from lora_runtime.errors import InvalidInput, KleinLabError, NotFound
from lora_runtime.registry.visitors import Visitors
from lora_runtime.written import quote

FILE_NAME: Final = "klein-lora-lab"
"""What downloads are called, before their ending."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparisonParts:
    """Filters, rows, and the one image that is looked at. `selected` is kept by the page, so that an event says which
    row it is about even when another was chosen meanwhile; `deleted` has the batches that can be brought back; `mark`
    says which state of the log is drawn."""

    text: gr.Textbox
    bar: gr.HTML
    table: gr.HTML
    file: gr.DownloadButton
    panel: gr.Column
    detail: gr.HTML
    rating: gr.HTML
    note: gr.Textbox
    saved: gr.HTML
    facts: gr.HTML
    play: gr.Button
    again: gr.Button
    dialog: gr.HTML
    selected: gr.Textbox
    view: gr.State
    deleted: gr.State
    mark: gr.State

    def reads(self) -> set[gr.components.Component]:
        """What an event reads."""
        return {self.text, self.selected, self.view, self.deleted, self.mark}

    def draws(self) -> set[gr.components.Component]:
        """What every event may draw anew."""
        return {self.bar, self.table, self.view, self.deleted, self.mark, self.dialog}

    def shows(self) -> set[gr.components.Component]:
        """What opening and closing a row changes."""
        return {self.panel, self.selected, self.detail, self.rating, self.note, self.saved, self.facts}


class ComparisonEvents:
    """The handlers, one store and one set of components."""

    def __init__(self, store: Store, visitors: Visitors, parts: ComparisonParts) -> None:
        self._store = store
        self._visitors = visitors
        self._parts = parts

    def refresh(self, values: Values, request: gr.Request) -> Updates:
        """Draw everything: the tab was opened, or the search has other words."""
        return self._draw(values, request, replace(self._view(values), rows=PAGE_ROWS))

    def follow(self, values: Values, request: gr.Request) -> Updates:
        """Draw what was rendered since the last time, from wherever; nothing when nothing was."""
        mark = self._parts.mark
        if values[mark] == self._store.log_mark(organization=self._organization(request)):
            return {mark: gr.skip()}
        return self._draw(values, request, self._view(values))

    def filter(self, values: Values, request: gr.Request, said: Mapping[str, Any]) -> Updates:
        """Take what the filter bar says."""
        view, act = self._view(values), str(said.get("act", ""))
        if act == "clear":
            # The page empties the search itself.
            empty = {**values, self._parts.text: ""}
            return self._draw(empty, request, LogView(group=view.group, chart=view.chart))
        if act == "view":
            return self._draw(values, request, replace(view, chart=said.get("value") == "chart"))
        filters = said.get("filters")
        return self._draw(values, request, read_view(view, filters if isinstance(filters, dict) else {}))

    def act(self, values: Values, request: gr.Request, said: Mapping[str, Any]) -> Updates:
        """Do what was clicked among the rows."""
        view, value = self._view(values), str(said.get("value") or "")
        match said.get("act"):
            case "sort":
                return self._draw(values, request, replace(sort_view(view, value), rows=PAGE_ROWS))
            case "more":
                return self._draw(values, request, replace(view, rows=view.rows + PAGE_ROWS))
            case "measure":
                return self._draw(values, request, replace(view, measure=value))
            case "clear":
                return self.filter(values, request, said)
            case "compare":
                return self._compare(values, request, _keys(said))
            case "delete":
                return self._delete(values, request, _keys(said))
            case "undo":
                return self._undo(values, request)
            case "open":
                return self._open(values, request, value)
            case _:
                return {self._parts.table: gr.skip()}

    def close(self, values: Values, request: gr.Request) -> Updates:
        """Close the panel."""
        parts = self._parts
        closed: Updates = {parts.panel: gr.update(visible=False), parts.selected: ""}
        return {**closed, **self._draw({**values, parts.selected: ""}, request, self._view(values))}

    def save(
        self, values: Values, request: gr.Request, row_id: str, *, rating: int | None = None, note: str | None = None
    ) -> Updates:
        """Keep the rating (0 takes it away) or the note of a row at once; the other stays as it is kept."""
        parts = self._parts
        try:
            record = self._find(row_id, request)
            stars = record.rating if rating is None else rating or None
            words = record.note if note is None else note
            if (stars, words) == (record.rating, record.note):
                return self.nothing()
            self._store.rate(*record.key, stars, words, organization=record.organization)
        except KleinLabError as error:
            return {parts.saved: markup.draw_error(error)}
        return {
            parts.saved: markup.draw_hint("Saved.", kind="good"),
            **self._draw(values, request, self._view(values)),
        }

    def export(self, values: Values, request: gr.Request, ending: str, ids: Sequence[str]) -> Updates:
        """Write the picked rows, or all that the filters show, into a file of Gradio's cache."""
        parts = self._parts
        page = self._page(values, request, self._view(values))
        picked = set(ids)
        records = [record for record in page.records if not picked or write_key(record) in picked]
        try:
            data = self._write(records, ending)
        except KleinLabError as error:
            drawn = draw_log(page, selected=str(values[parts.selected]), notice=markup.draw_error(error))
            return {parts.file: None, parts.table: drawn}
        name = f"{FILE_NAME}{ending}"
        return {parts.file: str(gr.processing_utils.save_bytes_to_cache(data, name, parts.file.GRADIO_CACHE))}

    def nothing(self) -> Updates:
        """Return what changes nothing; Gradio takes an empty answer for a missing one."""
        return {self._parts.saved: gr.skip()}

    def find(self, row_id: str, request: gr.Request) -> CellRecord:
        """Return one of the visitor's own rows.

        Raises:
            NotFound: There is no such row, or it is somebody else's.
        """
        return self._find(row_id, request)

    def _open(self, values: Values, request: gr.Request, row_id: str) -> Updates:
        parts = self._parts
        try:
            record = self._find(row_id, request)
        except KleinLabError as error:
            return self._draw(values, request, self._view(values), notice=markup.draw_error(error))
        selected = write_key(record)
        return {
            parts.panel: gr.update(visible=True),
            parts.selected: selected,
            parts.detail: draw_detail(record),
            parts.rating: draw_rating(record),
            parts.note: record.note,
            parts.saved: "",
            parts.facts: draw_facts(record),
            **self._draw({**values, parts.selected: selected}, request, self._view(values)),
        }

    def _compare(self, values: Values, request: gr.Request, keys: Sequence[CellKey]) -> Updates:
        own = {record.key: record for record in self._list(request)}
        try:
            drawn = draw_side_by_side([own[key] for key in keys if key in own], opened=time.monotonic_ns())
        except InvalidInput as error:
            return self._draw(values, request, self._view(values), notice=markup.draw_error(error))
        return {self._parts.dialog: drawn}

    def _delete(self, values: Values, request: gr.Request, keys: Sequence[CellKey]) -> Updates:
        parts = self._parts
        own = {record.key for record in self._list(request)}
        going = [key for key in keys if key in own]
        self._store.delete_cells(going, organization=self._organization(request))
        batches = (*values[parts.deleted], tuple(going)) if going else values[parts.deleted]
        kept: Updates = {parts.deleted: batches}
        if values[parts.selected] in {f"{run_id}/{position}" for run_id, position in going}:
            kept |= {parts.panel: gr.update(visible=False), parts.selected: ""}
        return {**kept, **self._draw({**values, parts.deleted: batches}, request, self._view(values))}

    def _undo(self, values: Values, request: gr.Request) -> Updates:
        """Bring the last batch back; those before it can follow."""
        parts = self._parts
        *batches, last = values[parts.deleted] or ((),)
        self._store.restore_cells(last, organization=self._organization(request))
        left = tuple(batches)
        return {parts.deleted: left, **self._draw({**values, parts.deleted: left}, request, self._view(values))}

    def _write(self, records: Sequence[CellRecord], ending: str) -> bytes:
        if ending == ".html":
            runs = dict.fromkeys(record.run_id for record in records)
            return html_report(
                [
                    (self._store.run(run_id), [record for record in records if record.run_id == run_id])
                    for run_id in runs
                ],
                {run_id: answer_run(self._store, run_id) for run_id in runs},
            ).encode()
        if ending not in TABLES:
            raise InvalidInput(f"Take away: {quote(ending)} is none of {', '.join(TABLES)} and .html.")
        # The page's visitors get the name of an image's file, not where it lies on this machine.
        return TABLES[ending](
            [replace(record, image=Path(record.image.name)) if record.image else record for record in records]
        )

    def _draw(self, values: Values, request: gr.Request, view: LogView, *, notice: str = "") -> Updates:
        parts = self._parts
        # Before the rows: what comes between the two is drawn with the next mark, never missed.
        mark = self._store.log_mark(organization=self._organization(request))
        page = self._page(values, request, view)
        deleted = sum(len(batch) for batch in values[parts.deleted])
        return {
            parts.view: page.view,
            parts.mark: mark,
            parts.bar: draw_bar(page),
            parts.table: draw_log(
                page,
                selected=str(values[parts.selected] or ""),
                deleted=deleted,
                notice=notice,
                answers=answer_cells(self._store, page.records) if page.view.chart else (),
            ),
        }

    def _page(self, values: Values, request: gr.Request, view: LogView) -> Page:
        return make_page(self._list(request), replace(view, text=str(values[self._parts.text] or "")))

    def _view(self, values: Values) -> LogView:
        view = values[self._parts.view]
        return view if isinstance(view, LogView) else LogView()

    def _list(self, request: gr.Request) -> tuple[CellRecord, ...]:
        return tell_records_apart(self._store.log(organization=self._organization(request)))

    def _find(self, row_id: str, request: gr.Request) -> CellRecord:
        record = find_record(self._store, row_id)
        if record.organization != self._organization(request):
            raise NotFound(f"There is no row {quote(row_id)}. Reload the page.")
        return record

    def _organization(self, request: gr.Request) -> str:
        return self._visitors.organization(request.session_hash)


def _keys(said: Mapping[str, Any]) -> list[CellKey]:
    """The rows that an event names; what is no id is left out."""
    found = []
    for row_id in said.get("ids") or ():
        try:
            found.append(read_key(str(row_id)))
        except NotFound:
            continue
    return found
