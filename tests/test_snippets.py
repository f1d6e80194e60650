"""Copied programs: what a person wrote stays data in them, and running them gives the same image again."""

import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import POCKET
from lora_runtime.errors import InvalidInput, Unavailable
from lora_runtime.lora.library import find_lora, refer_to
from lora_runtime.references import read_reference
from lora_runtime.requests import find_status, make_request
from lora_runtime.snippets import Language, write_api_program, write_diffusers_program, write_program
from lora_runtime.values import Reference, RenderRequest
from tests.api_server import Server, run_server
from tests.drawing_backend import DrawingBackend
from tests.lora_files import make_lokr, write_lokr
from tests.pocket_model import psnr, render, request

HOSTILE = 'a "red" cat\'s hat\n$(touch /tmp/never) `id` ${HOME} \\(1) %s {x} \\n !! \u202e ‮ 日本 🎚️ end\r\n'
needs_curl = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="curl and jq are not here")
PRINTABLE_TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=60)


def draw_image(path: Path, size: tuple[int, int] = (96, 64)) -> Reference:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path)
    return read_reference(path)


def sent_by_shell(program: str, folder: Path) -> tuple[list[str], object]:
    """The arguments and the body that a program gives to curl, seen by a function in its place."""
    fake = """curl() {
        local body=
        while [ $# -gt 0 ]; do case $1 in -d) body=$2; shift;; --data-binary) body=$(cat "${2#@}"); shift;; esac
        printf '%s\\0' "$1" >> arguments; shift; done
        printf '%s' "$body" > body; echo '{}'; }\n"""
    (folder / "arguments").unlink(missing_ok=True)
    subprocess.run(["bash", "-c", fake + program], cwd=folder, check=True, capture_output=True, timeout=60)
    return (folder / "arguments").read_text().split("\0"), json.loads((folder / "body").read_text())


def sent_by_python(program: str) -> dict[str, object]:
    """The JSON that a program posts, found by running it up to there."""
    before, after = program.split("response = requests.post(")
    call = after.split("response.raise_for_status()")[0]
    names: dict[str, object] = {}
    exec(
        before.replace(", requests", "") + "def post(url, headers, json): return url, json\nresult = post(" + call,
        names,
    )
    url, body = names["result"]  # type: ignore[misc]
    return {"url": url, **body}


@needs_curl
@settings(max_examples=25, deadline=None)
@given(PRINTABLE_TEXT, PRINTABLE_TEXT)
def test_any_text_reaches_the_api_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, name: str
) -> None:
    folder = tmp_path_factory.mktemp("shell", numbered=True)
    fields = {"prompt": prompt, "finetune_id": name, "finetune_strength": 0.85, "seed": 2**32 - 1}
    url = "http://127.0.0.1:1/v1/it's"
    arguments, body = sent_by_shell(write_program(url, fields, "curl"), folder)
    assert body == fields
    assert url in arguments
    assert sent_by_python(write_program(url, fields, "python")) == {"url": url, **fields}


@needs_curl
def test_hostile_text_does_nothing(tmp_path: Path) -> None:
    fields = {"prompt": HOSTILE.replace("/tmp", str(tmp_path)), "seed": 7}
    program = write_program("http://127.0.0.1:1/v1/x", fields, "curl")
    _, body = sent_by_shell(program, tmp_path)
    assert body == fields
    assert not (tmp_path / "never").exists()
    for language in ("curl", "python"):
        program = write_program("http://127.0.0.1:1/v1/x", fields, language)  # type: ignore[arg-type]
        assert "\u202e" not in program, "what is copied is what is seen"
    made = write_diffusers_program(request(prompt=HOSTILE))
    compile(made, "program", "exec")
    assert "\u202e" not in made


@needs_curl
def test_reference_images_are_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    references = (draw_image(tmp_path / "image-1.png"), draw_image(tmp_path / "image-2.png", (80, 64)))
    asked = request(references=references)
    expected = {
        field: base64.b64encode(reference.path.read_bytes()).decode()
        for field, reference in zip(("input_image", "input_image_2"), references, strict=True)
    }
    program = write_api_program(asked, "curl", base_url="http://127.0.0.1:1", finetune_id=None, output_format="webp")
    arguments, body = sent_by_shell(program, tmp_path)
    assert isinstance(body, dict)
    assert "http://127.0.0.1:1/v1/flux-2-klein-pocket" in arguments
    assert expected.items() <= body.items()
    assert (body["prompt"], body["output_format"], body["seed"]) == (asked.prompt, "webp", 7)
    (tmp_path / "image-2.png").unlink()
    (tmp_path / "arguments").unlink()
    fake = "curl() { touch sent; }\n"
    ran = subprocess.run(["bash", "-c", fake + program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert not (tmp_path / "sent").exists(), "a picture without its reference image is not what was asked for"
    assert "image-2.png" in ran.stderr
    draw_image(tmp_path / "image-2.png", (80, 64))
    monkeypatch.chdir(tmp_path)
    program = write_api_program(asked, "python", base_url="http://127.0.0.1:1", finetune_id=None)
    assert expected.items() <= sent_by_python(program).items()


def test_what_the_api_does_not_take_is_said_in_place_of_code(tmp_path: Path) -> None:
    def write(asked: RenderRequest, finetune_id: str | None = "mine") -> str:
        return write_api_program(asked, "curl", base_url="http://127.0.0.1:1", finetune_id=finetune_id)

    style = find_lora("style")
    with pytest.raises(InvalidInput, match="in 4 steps with guidance 1 only"):
        write(request(steps=8))
    with pytest.raises(InvalidInput, match="not from 0 to 2"):
        write(request(style, "-1"))
    with pytest.raises(InvalidInput, match="Finetunes tab"):
        write(request(style, "1"), None)
    with pytest.raises(Unavailable, match="does not render klein-4b in bf16 with a LoRA"):
        write(request(style, "1", weights="klein-4b"))
    lokr = find_lora(str(write_lokr(tmp_path / "lokr.safetensors", make_lokr(POCKET))))
    with pytest.raises(InvalidInput, match="is a LoKr"):
        write_diffusers_program(request(lokr, "1"))
    with pytest.raises(InvalidInput, match="only at the server"):
        write_diffusers_program(request(refer_to("acme/there"), "1"))


def test_a_program_for_others_names_no_files_of_this_machine() -> None:
    program = write_diffusers_program(request(find_lora("style"), "0.8"), with_paths=False)
    assert '"style.safetensors"' in program
    assert str(Path(__file__).parent.parent) not in program


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    with run_server(DrawingBackend(), home) as server:
        yield server


@pytest.mark.parametrize("language", [pytest.param("curl", marks=needs_curl), "python"])
def test_a_program_renders_the_same_image_at_our_own_server(server: Server, tmp_path: Path, language: Language) -> None:
    reference = draw_image(tmp_path / "image-1.png")
    finetune = server.service.finetunes.find("local", "official/style")
    asked = make_request(
        find_status(server.service.backend), prompt="a red cat\n'in' \"quotes\" $(id)", lora=finetune.lora,
        strength=Decimal("0.85"), seed=2**32 - 1, width=96, height=64, references=(reference,),
    )  # fmt: skip
    program = write_api_program(asked, language, base_url=server.url, finetune_id=finetune.id, output_format="png")
    environment = {**os.environ, "BFL_API_KEY": "", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = ["bash" if language == "curl" else sys.executable, "-c", program]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path
    )
    with urllib.request.urlopen(done.stdout.strip()) as reply:
        assert reply.headers["content-type"] == "image/png"
    backend = server.service.backend
    assert isinstance(backend, DrawingBackend)
    made = backend.rendered[-1]
    assert (made.prompt, made.seed, made.strength, made.width, made.height) == (
        asked.prompt, asked.seed, asked.strength, asked.width, asked.height
    )  # fmt: skip
    assert made.lora is not None
    assert made.lora.sha256 == finetune.lora.sha256
    assert [image.sha256 for image in made.references] == [reference.sha256]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "strength", "changes"),
    [
        ("style", "0.85", {"precision": "bf16"}),
        ("subject", "1", {"precision": "fp8", "prompt": "a large 'ohwx'\n in the \"snow\""}),
        ("overtrained", "-0.5", {"precision": "fp32", "width": 96}),
        (None, "0", {"precision": "fp32", "weights": "pocket-base", "steps": 6, "guidance": 4.0}),
        ("style", "0.7", {"precision": "bf16", "references": ((96, 64), (640, 400))}),
    ],
)
def test_the_diffusers_program_gives_the_same_pixels(
    local_backend: LocalBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lora: str | None,
    strength: str,
    changes: dict[str, object],
) -> None:
    sizes = changes.pop("references", ())
    assert isinstance(sizes, tuple)
    references = tuple(draw_image(tmp_path / f"image-{number}.png", size) for number, size in enumerate(sizes, 1))
    asked = request(find_lora(lora) if lora else None, strength, references=references, **changes)
    (ours,) = render(local_backend, asked)
    monkeypatch.chdir(tmp_path)
    exec(write_diffusers_program(asked), {})
    with Image.open(tmp_path / "image.png") as image:
        assert psnr(ours, np.asarray(image)) >= 45
