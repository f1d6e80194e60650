"""Sweeps as links: `?sweep=RUN` opens a run when the page loads, with its grid, its verdict and the form filled.

grid.js writes the address of the run on the page into the address bar; here it is read back. Whoever has the link may
look; a run of somebody else's is filled in with the LoRAs of whoever looks, found by their content.
"""

from dataclasses import replace
from typing import Final

import gradio as gr

from evaluation.grid import name_lora
from evaluation.store.store import Store
from evaluation.tabs import markup
from evaluation.tabs.form import SweepForm, fill_form
from evaluation.tabs.parts import SweepParts, Updates
from evaluation.tabs.run import RunHandlers
from evaluation.tabs.sweep_fields import FieldHandlers
from lora_runtime.errors import KleinLabError, NotFound
from lora_runtime.written import quote

PARAMETER: Final = "sweep"
"""The name in the address; grid.js has it too."""


class LinkHandlers:
    """Opening a run: by a link, or from the list of earlier ones."""

    def __init__(self, store: Store, parts: SweepParts, fields: FieldHandlers, runs: RunHandlers) -> None:
        self._store = store
        self._parts = parts
        self._fields = fields
        self._runs = runs

    def open_link(self, request: gr.Request) -> Updates:
        """Open the run of the address, if it names one."""
        run_id = dict(request.query_params).get(PARAMETER)
        return self.open(run_id, request) if run_id else {self._parts.status: gr.skip()}

    def open(self, run_id: str | None, request: gr.Request) -> Updates:
        """Show a run and fill the form with it; an id that is none leaves the form as it is."""
        if not run_id:
            return {self._parts.status: gr.skip()}
        parts = self._parts
        try:
            form, missing = self._find_form(run_id, request)
            shown = self._runs.open(run_id, request.session_hash)
        except NotFound:
            # Not the error's own words: those tell whoever sits at the machine which command lists the runs.
            error = NotFound(
                f"There is no sweep {quote(run_id)} here. The link may be cut short, or the sweep was deleted."
            )
            return {parts.status: markup.draw_error(error)}
        except KleinLabError as error:
            return {parts.status: markup.draw_error(error)}
        updates = {**self._fields.fill(form, request), **shown}
        if missing:
            updates[parts.lora] = None
            updates[parts.status] = shown[parts.status] + markup.draw_hint(
                f"Its LoRA “{missing}” is not among yours: choose one to run it yourself.", kind="warn"
            )
        return updates

    def _find_form(self, run_id: str, request: gr.Request) -> tuple[SweepForm, str]:
        """The form of a run with the LoRAs as this visitor calls them, and the name of its first if they lack it."""
        spec = self._store.run(run_id).spec
        form = fill_form(spec)
        mine = {ref.sha256: ref.name for ref in reversed(self._fields.list_loras(request))}
        more = tuple(mine[lora.sha256] for lora in spec.loras[1:] if lora.sha256 in mine)
        if not spec.loras or spec.loras[0].sha256 not in mine:
            return replace(form, lora=None, more_loras=more), name_lora(spec) if spec.loras else ""
        return replace(form, lora=mine[spec.loras[0].sha256], more_loras=more), ""
