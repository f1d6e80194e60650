"""Finetunes for programs and agents: `/list_finetunes` and `/inspect`; who is calling; and what MCP tools answer.

A program is nobody's browser. On a person's own machine it is `local` like everybody else; where visitors are kept
apart it sees the bundled LoRAs alone, unless it sends the key of an organization as the header `x-key`.
"""

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from lora_runtime.errors import InvalidInput
from lora_runtime.lora.description import describe_file
from lora_runtime.lora.library import path_of, report_of
from lora_runtime.registry.accounts import Accounts
from lora_runtime.registry.finetune import Finetune
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.visitors import Visitors
from lora_runtime.server.service import Service
from lora_runtime.written import read_text

MAX_PREVIEWS: Final = 16
PREVIEW_PX: Final = 384
"""An agent looks at small copies; the rows name the files themselves."""

_FILE: Final = "gradio.FileData"


def make_caller(visitors: Visitors, accounts: Accounts) -> Callable[[gr.Request], str]:
    """Return the function that says for which organization a program speaks.

    It raises `NotAuthorized` for a key that is none.
    """

    def caller(request: gr.Request) -> str:
        key = request.headers.get("x-key")
        return accounts.authenticate(key) if key else visitors.organization(None)

    return caller


def build_finetunes_api(service: Service, shelf: Shelf, caller: Callable[[gr.Request], str]) -> None:
    """Add the endpoints to the current `gr.Blocks`."""

    def list_finetunes(request: gr.Request) -> list[dict[str, Any]]:
        """List the LoRAs that sweep, generate and inspect know by name.

        Returns:
            One object a LoRA: name (what to pass as lora), base_model (the weights it is for), trigger_phrase (words
            that the prompt should have), source ("Owned", "Third party" or "Official"), finetune_id and endpoint (of
            the HTTP API; an official one is found there by its name alone, too), format, rank and sha256.
        """
        return [_show_finetune(finetune) for finetune in shelf.show(caller(request))]

    # Not `| None`: an MCP client is told of a file, and sends one, only where the type is nothing else.
    def inspect(request: gr.Request, lora: str = "", file: gr.FileData = None) -> dict[str, Any]:
        """Say what a LoRA is, which FLUX.2 [klein] base it fits, and what is wrong with it, without rendering.

        Args:
            lora: The name of a LoRA, as list_finetunes shows it.
            file: A .safetensors file, instead of a name. It is looked at, not kept.

        Returns:
            ok (it would load), format, base (the weights it fits), trained_on, rank, alpha, trigger_phrase, matched,
            unmatched, notices, problems, sha256 and norms (the size of the weight change, by block).
        """
        lora = read_text("LoRA", lora)
        if bool(lora) == bool(file):
            raise InvalidInput("Give either lora, the name of a LoRA, or file, a .safetensors file.")
        if not file:
            return describe_file(path_of(shelf.find(caller(request), lora)))
        return describe_file(_find_upload(file, max_bytes=service.settings.lora_max_bytes))

    gr.api(list_finetunes, api_name="list_finetunes", concurrency_limit=None)
    gr.api(inspect, api_name="inspect", concurrency_limit=2)


def answer_in_json(page: gr.Blocks) -> None:
    """Let the MCP tools of a launched page answer with JSON and small copies of the images.

    Gradio would write rows as Python prints them, and leave images inside them out.
    """
    from mcp.types import ImageContent, TextContent

    def answer(outputs: Sequence[Any], root_url: str) -> list[TextContent | ImageContent]:
        paths: list[Path] = []
        found = [_name_files(output, root_url, paths) for output in outputs]
        text = json.dumps(found[0] if len(found) == 1 else found, indent=1)
        previews = [
            ImageContent(type="image", data=_shrink(path), mimeType="image/jpeg") for path in paths[:MAX_PREVIEWS]
        ]
        return [TextContent(type="text", text=text), *previews]

    server = page.mcp_server_obj
    if server is not None:
        server.postprocess_output_data = answer


def _show_finetune(finetune: Finetune) -> dict[str, Any]:
    report = report_of(finetune.lora)
    return {
        "name": finetune.lora.name,
        "base_model": finetune.weights,
        "trigger_phrase": finetune.trigger_phrase,
        "source": finetune.source,
        "finetune_id": finetune.id,
        "endpoint": finetune.endpoint.path,
        "format": report.spelling,
        "rank": list(report.ranks),
        "sha256": finetune.lora.sha256,
    }


def _find_upload(file: Any, *, max_bytes: int) -> Path:
    """The file of an upload, which must be one: a program may send any path.

    Raises:
        InvalidInput: It is none, or too large.
    """
    sent = file.get("path") if isinstance(file, dict) else None
    path = Path(str(sent)).resolve()
    if not sent or not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise InvalidInput("File: upload it, with gradio_client's handle_file or as an MCP client does.")
    if path.stat().st_size > max_bytes:
        raise InvalidInput(f"File: {path.stat().st_size} bytes are too many; at most {max_bytes} are taken.")
    return path


def _name_files(value: Any, root_url: str, paths: list[Path]) -> Any:
    """`value` with the address of a file in place of what Gradio knows about it; the files are added to `paths`."""
    if isinstance(value, list):
        return [_name_files(each, root_url, paths) for each in value]
    if not isinstance(value, dict):
        return value
    if value.get("meta", {}).get("_type") == _FILE:
        paths.append(Path(value["path"]))
        return f"{root_url.rstrip('/')}/gradio_api/file={quote(value['path'])}"
    return {key: _name_files(each, root_url, paths) for key, each in value.items()}


def _shrink(path: Path) -> str:
    """A small JPEG of an image, as base64."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((PREVIEW_PX, PREVIEW_PX))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
