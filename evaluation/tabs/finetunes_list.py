"""The list of finetunes: filter, search, open a row, delete and undo; and for which organization the page acts.

Every event reads the registry again, so what programs and other pages changed is there too.
"""

from collections.abc import Sequence

import gradio as gr

from evaluation.tabs import finetunes_markup as markup
from evaluation.tabs.finetunes_panel import PanelHandlers
from evaluation.tabs.finetunes_parts import ListParts, Updates, Values, read_text
from lora_runtime.errors import KleinLabError, NotFound
from lora_runtime.registry.finetune import Finetune, Source
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.visitors import VISITOR_PREFIX, Visitors
from lora_runtime.server.service import Service

MANY = 8
"""From more than so many finetunes on there is a search field."""

_FILTERS = {"All": None, "Owned": Source.OWNED, "Shared": Source.THIRD_PARTY}


class ListHandlers:
    """Events of the list."""

    def __init__(self, service: Service, visitors: Visitors, parts: ListParts, panel: PanelHandlers) -> None:
        self._service = service
        self._registry = service.finetunes
        self._visitors = visitors
        self._parts = parts
        self._panel = panel
        self._shelf = Shelf(service.finetunes)

    def organization(self, values: Values, request: gr.Request) -> str:
        """Return the organization that the page acts for; only the owner of a machine may choose another."""
        own = self.visitor(request)
        chosen = read_text(values, self._parts.organization)
        return chosen if chosen in self._list_organizations(own) else own

    def visitor(self, request: gr.Request) -> str:
        """Return the organization of whoever is at the page."""
        return self._visitors.organization(request.session_hash)

    def refresh(self, values: Values, request: gr.Request) -> Updates:
        """Draw everything anew, for whoever comes to the tab; an opened row stays open."""
        parts, organization = self._parts, self.organization(values, request)
        organizations = self._list_organizations(self.visitor(request))
        choice = gr.update(choices=organizations, value=organization, visible=len(organizations) > 1)
        selected = read_text(values, parts.selected)
        drawn = self.show(values, selected, request) if selected else self.draw(values, request)
        return {parts.note: "", **drawn, parts.organization: choice}

    def draw(self, values: Values, request: gr.Request, *, selected: str | None = None) -> Updates:
        """Draw the list of the filters; `selected` is the row that is open from now on, "" for none."""
        parts, organization = self._parts, self.organization(values, request)
        opened = read_text(values, parts.selected) if selected is None else selected
        everything = self._registry.list(organization)
        asked = read_text(values, parts.shown)
        shown = asked if asked in _FILTERS else "All"
        text = read_text(values, parts.search).strip().lower()
        listed = [finetune for finetune in everything if _filters(finetune, shown) and _matches(finetune, text)]
        place = next((index for index, finetune in enumerate(listed) if finetune.id == opened), None)
        cut = len(listed) if place is None else place + 1
        table = markup.draw_table(listed[:cut], opened=opened) or markup.draw_empty(shown, organization)
        return {
            parts.you: markup.draw_you(organization),
            parts.shown: gr.update(choices=_count(everything), value=shown),
            parts.search: gr.update(visible=len(everything) > MANY or bool(text)),
            parts.table: table,
            parts.rest: markup.draw_table(listed[cut:], continued=True),
            parts.deleted: markup.draw_deleted(self._registry.list_deleted(organization)),
            parts.selected: opened,
            self._panel.parts.panel: gr.update(visible=place is not None),
        }

    def open(self, values: Values, finetune_id: str, request: gr.Request) -> Updates:
        """Open a row, or close it when it is open."""
        if finetune_id == read_text(values, self._parts.selected):
            return self.draw(values, request, selected="")
        return self.show(values, finetune_id, request)

    def show(self, values: Values, finetune_id: str, request: gr.Request, *, note: str = "") -> Updates:
        """Open a row with fresh contents, and say what has just happened."""
        organization = self.organization(values, request)
        try:
            finetune = self.find(organization, finetune_id)
        except KleinLabError as error:
            return {**self.draw(values, request, selected=""), self._parts.note: markup.draw_note(str(error))}
        return {
            **self.draw(values, request, selected=finetune.id),
            **self._panel.show(organization, finetune, values, request),
            self._parts.note: markup.draw_note(note) if note else "",
        }

    def delete(self, values: Values, finetune_id: str, request: gr.Request) -> Updates:
        """Delete a finetune; it can be undone."""
        opened = read_text(values, self._parts.selected)
        try:
            deleted = self._registry.remove(self.organization(values, request), finetune_id)
        except KleinLabError as error:
            return {**self.draw(values, request), self._parts.note: markup.draw_note(str(error))}
        return {
            **self.draw(values, request, selected="" if opened == deleted.id else opened),
            self._parts.note: markup.draw_note(f"{deleted.name} was deleted.", undo=deleted.name),
        }

    def restore(self, values: Values, name: str, request: gr.Request) -> Updates:
        """Take a deletion back."""
        try:
            restored = self._registry.restore(self.organization(values, request), name)
        except KleinLabError as error:
            return {**self.draw(values, request), self._parts.note: markup.draw_note(str(error))}
        shared = ", shared as before" if restored.granted_to else ""
        return {
            **self.draw(values, request),
            self._parts.note: markup.draw_note(f"{restored.name} is back{shared}."),
        }

    def name_for(self, own: str, finetune: Finetune) -> tuple[str, str]:
        """Return how the Sweep tab and the Playground call a finetune: they act for the visitor's `own` organization.

        Raises:
            NotFound: That organization cannot use it.
        """
        full = finetune.full_name
        try:
            seen = self._registry.find(own, full)
        except NotFound as error:
            raise NotFound(
                f"Sweeps and the Playground act for {own}: share {finetune.name} with {own} first."
            ) from error
        there = [ref.name for ref in self._shelf.list(own) if ref.path == seen.lora.path]
        return next((name for name in there if name in (seen.id, full)), there[0]), seen.id

    def find(self, organization: str, finetune_id: str) -> Finetune:
        """Return a finetune as the registry has it now.

        Raises:
            NotFound: It has gone meanwhile.
        """
        return self._registry.find(organization, finetune_id)

    def _list_organizations(self, own: str) -> list[str]:
        """The organizations a page may act for: where visitors are kept apart, its own alone."""
        if self._visitors.apart:
            return [own]
        known = self._service.accounts.list_organizations()
        return [own, *(name for name in known if name != own and not name.startswith(VISITOR_PREFIX))]


def _filters(finetune: Finetune, shown: str) -> bool:
    return _FILTERS[shown] in (None, finetune.source)


def _matches(finetune: Finetune, text: str) -> bool:
    about = f"{finetune.id} {finetune.weights} {finetune.trigger_phrase or ''} {finetune.source}".lower()
    return all(word in about for word in text.split())


def _count(everything: Sequence[Finetune]) -> list[tuple[str, str]]:
    return [(f"{name} {sum(_filters(finetune, name) for finetune in everything)}", name) for name in _FILTERS]
