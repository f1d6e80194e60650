"""What happens in the Comparison tab: filter, sort, open, rate, compare, delete, undo, take away.

Every event asks the log again, so what was rendered meanwhile is there too, and only ever the caller's own rows: an id
that the page sends is looked up among those.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

import gradio as gr

from evaluation.captions import tell_records_apart
from evaluation.judge.answer import tell_cells
from evaluation.log import find_record, read_behind, read_key, read_keys, read_log_table, read_page, write_key
from evaluation.log_search import PAGE_ROWS, LogView, read_view, sort_view
from evaluation.report.draw import draw, part
from evaluation.report.files import write_table
from evaluation.report.grid_view import image_url
from evaluation.report.html import html_report
from evaluation.store.read import LogMark
from evaluation.store.records import CellKey, CellRecord
from evaluation.store.store import Store
from evaluation.tabs.comparison_form import (
    list_picture_facts,
    view_bar,
    view_log,
    view_log_chart,
    view_picture,
    view_side_by_side,
)
from evaluation.tabs.page import Caller, Changes, Said, draw_error, keep_file
from lora_runtime.errors import InvalidInput, KleinLabError, NotFound

FILE_NAME: Final = "klein-lora-lab"
"""What downloads are called, before their ending."""

READS: Final = ("text", "selected", "view", "deleted", "mark")
"""What an event reads: the words of the search, the row that is looked at, how the log is shown, the batches that can
be brought back, and which state of the log is drawn."""

DRAWS: Final = ("bar", "table", "view", "deleted", "mark", "dialog")
"""What every event may draw anew."""

SHOWS: Final = ("panel", "selected", "detail", "rating", "note", "saved", "facts")
"""What opening and closing a row changes."""

Values = Mapping[str, Any]

_CLOSED: Final = {"panel": gr.update(visible=False), "selected": ""}


@dataclass(frozen=True, kw_only=True)
class ComparisonRun:
    """The handlers over one store."""

    store: Store

    def refresh(self, caller: Caller, values: Values, said: Said) -> Changes:
        """Draw everything: the tab was opened, or the search has other words."""
        return self._draw(caller, values, replace(values["view"], rows=PAGE_ROWS))

    def follow(self, caller: Caller, values: Values, said: Said) -> Changes:
        """Draw what was rendered since the last time, from wherever; nothing when nothing was."""
        if values["mark"] == self.store.log_mark(organization=caller.organization):
            return {}
        return self._draw(caller, {**values, "mark": None}, values["view"])

    def act(self, caller: Caller, values: Values, said: Said) -> Changes:
        """Do what was clicked among the filters and the rows."""
        view: LogView = values["view"]
        match said.act:
            case "filter":
                return self._draw(caller, values, read_view(view, said.named))
            case "view":
                return self._draw(caller, values, replace(view, chart=said.text == "chart"))
            case "search":  # words that the page has, and that no event told
                return self._draw(caller, {**values, "text": said.text}, replace(view, rows=PAGE_ROWS))
            case "clear":  # the page empties the search itself
                return self._draw(caller, {**values, "text": ""}, LogView(group=view.group, chart=view.chart))
            case "sort":
                return self._draw(caller, values, sort_view(view, said.text))
            case "more":
                return self._draw(caller, values, replace(view, rows=view.rows + PAGE_ROWS))
            case "measure":
                return self._draw(caller, values, replace(view, measure=said.text))
            case "compare":
                return self._compare(caller, values, said)
            case "delete":
                return self._delete(caller, values, said)
            case "undo":
                return self._undo(caller, values)
            case "open":
                return self._open(caller, values, said.id)
            case "close":
                return {**_CLOSED, **self._draw(caller, {**values, "selected": ""}, view)}
        return {}

    def rate(self, caller: Caller, values: Values, said: Said) -> Changes:
        """Keep the rating of a row at once; 0 takes it away."""
        if said.text not in ("0", "1", "2", "3", "4", "5"):
            return {}
        record = find_record(self.store, said.id, organization=caller.organization)
        return self._save(caller, values, record, int(said.text) or None, record.note)

    def write_note(self, caller: Caller, values: Values, said: Said) -> Changes:
        """Keep the note of the row that is looked at, as it is written."""
        if not values["selected"]:
            return {}
        record = find_record(self.store, values["selected"], organization=caller.organization)
        return self._save(caller, values, record, record.rating, str(values["note"] or ""))

    def export(self, caller: Caller, values: Values, said: Said) -> Changes:
        """Write the picked rows, or all that the filters show, into a file of Gradio's cache."""
        view = replace(values["view"], text=str(values["text"] or ""))
        picked, ending = set(self._keys(said)), said.act
        # A picked row may have been drawn before another run showed its image; a report has each run whole.
        every = bool(picked) or ending == ".html"
        known = read_keys(self.store, view, organization=caller.organization, every=every)
        keys = [key for key in known if not picked or key in picked]
        try:
            data = (
                self._write_report(keys) if ending == ".html" else write_table(read_log_table(self.store, keys), ending)
            )
        except KleinLabError as error:
            return {"file": None, **self._draw(caller, values, values["view"], notice=draw_error(error))}
        return {"file": keep_file(data, f"{FILE_NAME}{ending}")}

    def find(self, caller: Caller, values: Values) -> CellRecord:
        """Return the row that is looked at.

        Raises:
            NotFound: There is no such row, or it is somebody else's.
        """
        return find_record(self.store, values["selected"], organization=caller.organization)

    def _save(self, caller: Caller, values: Values, record: CellRecord, rating: int | None, note: str) -> Changes:
        if (rating, note) == (record.rating, record.note):
            return {}
        self.store.rate(*record.key, rating, note, organization=record.organization)
        return {"saved": part("hint", text="Saved.", kind="good"), **self._draw(caller, values, values["view"])}

    def _open(self, caller: Caller, values: Values, row_id: str) -> Changes:
        try:
            record = find_record(self.store, row_id, organization=caller.organization)
        except KleinLabError as error:
            return self._draw(caller, values, values["view"], notice=draw_error(error))
        selected = write_key(record)
        equal = chain(*read_behind(self.store, LogView(), [record.key], organization=caller.organization))
        runs = [run_id for run_id in dict.fromkeys(run_id for run_id, _ in equal) if run_id != record.run_id]
        return {
            "panel": gr.update(visible=True),
            "selected": selected,
            "detail": draw("picture.html", picture=view_picture(record)),
            "rating": draw("picture-rating.html", id=selected, stars=record.rating or 0),
            "note": record.note,
            "saved": "",
            "facts": draw("picture-facts.html", facts=list_picture_facts(record, runs)),
            **self._draw(caller, {**values, "selected": selected}, values["view"]),
        }

    def _compare(self, caller: Caller, values: Values, said: Said) -> Changes:
        records = self.store.records(self._keys(said))
        own = [record for record in records if record.organization == caller.organization]
        try:
            payload = json.dumps({"opened": time.monotonic_ns(), **view_side_by_side(tell_records_apart(own))})
            return {"dialog": draw("compare-picks.html", said=payload)}
        except InvalidInput as error:
            return self._draw(caller, values, values["view"], notice=draw_error(error))

    def _delete(self, caller: Caller, values: Values, said: Said) -> Changes:
        """Delete rows with all the cells they stand for, as an equal image of another run would take their place."""
        view = replace(values["view"], text=str(values["text"] or ""))
        going = read_behind(self.store, view, self._keys(said), organization=caller.organization)
        self.store.delete_cells(chain(*going), organization=caller.organization)
        values = {**values, "mark": None, "deleted": (*values["deleted"], going) if going else values["deleted"]}
        closed: Changes = {}
        if values["selected"] in {f"{run_id}/{position}" for run_id, position in chain(*going)}:
            closed, values = _CLOSED, {**values, "selected": ""}
        return {**closed, **self._draw(caller, values, values["view"])}

    def _undo(self, caller: Caller, values: Values) -> Changes:
        """Bring the last batch back; those before it can follow."""
        *batches, last = values["deleted"] or ((),)
        self.store.restore_cells(chain(*last), organization=caller.organization)
        return self._draw(caller, {**values, "mark": None, "deleted": tuple(batches)}, values["view"])

    def _write_report(self, keys: Sequence[CellKey]) -> bytes:
        records = tell_records_apart(self.store.records(keys))
        runs = dict.fromkeys(record.run_id for record in records)
        own = {run_id: [record for record in records if record.run_id == run_id] for run_id in runs}
        answers = {run_id: tell_cells(self.store, found)[0] for run_id, found in own.items()}
        return html_report([(self.store.run(run_id), found) for run_id, found in own.items()], answers).encode()

    def _draw(self, caller: Caller, values: Values, view: LogView, *, notice: str = "") -> Changes:
        """Draw the log. A mark that is known is kept: what has come since is drawn at the next tick."""
        organization = caller.organization
        mark = values["mark"] if isinstance(values["mark"], LogMark) else self.store.log_mark(organization=organization)
        view = replace(view, text=str(values["text"] or ""))
        page = read_page(self.store, view, organization=organization)
        deleted = sum(len(batch) for batch in values["deleted"])
        log = view_log(page, selected=str(values["selected"] or ""), deleted=deleted, notice=notice)
        if view.chart and page.shown:
            keys = read_keys(self.store, view, organization=organization, every=True)
            table, records = read_log_table(self.store, keys), tell_records_apart(self.store.records(keys))
            found, _ = tell_cells(self.store, records)
            chart, measures, answers = view_log_chart(table, found, view.measure, place=self._place)
            log = replace(log, chart=chart, measures=measures, answers=answers)
        return {
            "view": view,
            "mark": mark,
            "deleted": values["deleted"],
            "bar": draw("log-bar.html", bar=view_bar(page)),
            "table": draw("log.html", log=log),
        }

    def _place(self, blob: str) -> str:
        path = self.store.find_image(blob)
        return image_url(path) if path else ""

    def _keys(self, said: Said) -> list[CellKey]:
        """The rows that an event names; what is no id is left out."""
        found = []
        for row_id in said.texts:
            try:
                found.append(read_key(row_id))
            except NotFound:
                continue
        return found
