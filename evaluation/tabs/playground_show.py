"""One image of the Playground large, with its download and the programs that make it again, and the earlier ones."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gradio as gr
from PIL import Image

from evaluation.grid import Target
from evaluation.identity import base_request, identity
from evaluation.report.draw import draw
from evaluation.report.grid_view import image_url
from evaluation.store.store import CellRecord, Run, Store
from evaluation.tabs.markup import draw_error
from evaluation.tabs.playground_form import FORMATS, Models
from evaluation.tabs.playground_parts import PlayParts, Updates
from evaluation.tabs.playground_view import LANGUAGES, Program, view_history, view_picture
from lora_runtime.errors import KleinLabError
from lora_runtime.registry.visitors import Visitors
from lora_runtime.server.access import read_base_url
from lora_runtime.server.images import encode_result
from lora_runtime.server.service import Service
from lora_runtime.snippets import Language, write_api_program, write_diffusers_program
from lora_runtime.values import RenderRequest

HISTORY: Final = 24
"""How many earlier images the Playground shows."""

ORIGIN: Final = "playground"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who looks, and the address under which they reach this server."""

    organization: str
    base_url: str


class PlayShow:
    """Draws images for one caller at a time; what it draws comes from the store, so that a reload finds it again."""

    def __init__(self, store: Store, service: Service, models: Models, visitors: Visitors, parts: PlayParts) -> None:
        self._store = store
        self._service = service
        self._models = models
        self._visitors = visitors
        self._parts = parts

    def caller(self, request: gr.Request) -> Caller:
        """Return who sends an event."""
        return Caller(
            organization=self._visitors.organization(request.session_hash),
            base_url=read_base_url(request.request, self._service.settings.public_url),
        )

    def load(self, output_format: str, caller: Caller) -> Updates:
        """Show the newest image and the earlier ones, as after a reload."""
        newest = self._store.history(1, organization=caller.organization, origin=ORIGIN)
        if not newest:
            return {self._parts.history: draw("play-history.html", images=(), selected="")}
        return self.show(newest[0][0].id, output_format, caller)

    def show(self, run_id: str, output_format: str, caller: Caller, *, with_base: bool = False) -> Updates:
        """Show one image large, beside its base image if that is wanted and there."""
        parts = self._parts
        try:
            run, record = self.find(run_id)
            picture = self._draw(run, record, output_format, caller, with_base=with_base)
        except KleinLabError as error:
            return {parts.status: draw_error(error)}
        return {parts.selected: run_id, parts.picture: picture, **self.list_earlier(caller, run_id)}

    def list_earlier(self, caller: Caller, selected: str) -> Updates:
        """Show the caller's newest images."""
        found = self._store.history(HISTORY, organization=caller.organization, origin=ORIGIN)
        return {self._parts.history: draw("play-history.html", images=view_history(found), selected=selected)}

    def find(self, run_id: str) -> tuple[Run, CellRecord]:
        """Return a run of the Playground and its one cell.

        Raises:
            NotFound: There is no such run.
        """
        run, cells = self._store.look(run_id)
        return run, cells[0]

    def name_lora(self, request: RenderRequest, caller: Caller) -> str | None:
        """Return the name under which the caller's shelf has the LoRA of an image."""
        if request.lora is None:
            return None
        found = self._models.find_file(caller.organization, request.lora.sha256, request.weights)
        return found.lora.name if found else request.lora.name

    def find_base(self, record: CellRecord) -> Path | None:
        """Return the base model's image of the same settings, if it was ever rendered."""
        target = record.cell.target
        key = identity(base_request(record.cell.request), target)
        found = self._store.image(key)
        return found.path if found else None

    def _draw(self, run: Run, record: CellRecord, output_format: str, caller: Caller, *, with_base: bool) -> str:
        chosen = output_format if output_format in FORMATS else FORMATS[0]
        view = view_picture(
            run,
            record,
            download=self._encode(record, chosen) if record.image else "",
            output_format=chosen,
            programs=self._write_programs(record, chosen, caller) if record.image else (),
            base=self.find_base(record) if with_base else None,
        )
        return draw("play-picture.html", picture=view)

    def _encode(self, record: CellRecord, output_format: str) -> str:
        """The address of the image in a format; the PNG is the very file that was written."""
        if record.image is None or output_format == "png":
            return image_url(record.image) if record.image else ""
        with Image.open(record.image) as image:
            data = encode_result(image, output_format, record.cell.request)
        ending = "jpg" if output_format == "jpeg" else output_format
        return image_url(
            Path(
                gr.processing_utils.save_bytes_to_cache(
                    data, f"{record.run_id}.{ending}", self._parts.picture.GRADIO_CACHE
                )
            )
        )

    def _write_programs(self, record: CellRecord, output_format: str, caller: Caller) -> list[Program]:
        request, target = record.cell.request, record.cell.target
        base_url, finetune_id = self._find_server(request, target, caller)
        note = ""
        if not target.server and self._service.is_off:
            note = "The HTTP API of this Space is off until it has keys."
        curl, python, diffusers = LANGUAGES

        def write(language: Language) -> str:
            return write_api_program(
                request, language, base_url=base_url, finetune_id=finetune_id, output_format=output_format
            )

        return [
            _write(curl, lambda: write("curl"), note),
            _write(python, lambda: write("python"), note),
            _write(diffusers, lambda: write_diffusers_program(request, with_paths=not self._visitors.apart), ""),
        ]

    def _find_server(self, request: RenderRequest, target: Target, caller: Caller) -> tuple[str, str | None]:
        """The server that renders the image again, and under which id it knows the LoRA."""
        known = None
        if request.lora is not None:
            finetune = self._models.find_file(caller.organization, request.lora.sha256, request.weights)
            known = finetune.id if finetune and finetune.weights == request.weights else None
        if not target.server:
            return caller.base_url, known
        there = request.lora.finetune_id if request.lora else None
        return target.server, there or known


def _write(name: str, writer: Callable[[], str], note: str) -> Program:
    try:
        return Program(name=name, text=writer(), note=note)
    except KleinLabError as error:
        return Program(name=name, problem=str(error))
