"""The app as an agent meets it: a real MCP client on the real page lists the tools, reads what they say, calls each."""

import asyncio
import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import gradio as gr
import pytest
from mcp import ClientSession, types
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

from tests.app_server import closed_loops, serve  # noqa: F401 - a fixture
from tests.drawing_backend import DrawingBackend, make_lora
from tests.test_app import PROMPT_SETS

# Gradio's own summary of its queue uses pandas as pandas 3 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing")


@pytest.fixture
def page(home: Path, closed_loops: None) -> Iterator[gr.Blocks]:  # noqa: F811
    with serve(home, DrawingBackend()) as page:
        yield page


def ask(page: gr.Blocks, *calls: tuple[str, dict[str, object]]) -> list[Any]:
    """The list of tools, then the answer of each call, over one connection."""

    async def talk() -> list[Any]:
        address = f"{page.local_url}gradio_api/mcp/"
        async with streamable_http_client(address) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            answers: list[Any] = [(await session.list_tools()).tools]
            for name, arguments in calls:
                answers.append(await session.call_tool(name, arguments))
            return answers

    return asyncio.run(talk())


def read(answer: types.CallToolResult) -> Any:
    assert not answer.isError, answer.content
    assert isinstance(answer.content[0], types.TextContent)
    return json.loads(answer.content[0].text)


def pictures(answer: types.CallToolResult) -> list[Image.Image]:
    shown = [content for content in answer.content if isinstance(content, types.ImageContent)]
    return [Image.open(BytesIO(base64.b64decode(content.data))) for content in shown]


def test_an_agent_finds_its_tools_with_words_and_types(page: gr.Blocks) -> None:
    (tools,) = ask(page)
    names = {"sweep", "generate", "votes", "list_training_runs", "list_finetunes", "inspect"} | PROMPT_SETS
    assert {tool.name for tool in tools} == names, "and no page event"
    for tool in tools:
        assert tool.description
        properties = tool.inputSchema["properties"]
        assert all("type" in each or "oneOf" in each or "anyOf" in each for each in properties.values())
        assert all(each.get("description") for each in properties.values()), tool.name
        assert not {"key", "token", "path"} & set(properties)
    sweep = next(tool for tool in tools if tool.name == "sweep")
    assert set(sweep.inputSchema["required"]) == {"lora", "prompt", "strengths", "seed"}


def test_an_agent_sweeps_generates_and_sees_the_images(page: gr.Blocks) -> None:
    _, swept, drawn = ask(
        page,
        ("sweep", {"lora": "house-style", "prompt": "a red cat", "strengths": "0.5, 1", "seed": 7}),
        ("generate", {"lora": "house-style", "prompt": "a red cat", "strength": 0.7, "seed": 7}),
    )
    rows = read(swept)
    assert [(row["strength"], row["status"], row["weights"]) for row in rows] == [
        (0, "done", "pocket"), (0.5, "done", "pocket"), (1, "done", "pocket"),
    ]  # fmt: skip
    assert len(pictures(swept)) == 3
    row = read(drawn)
    assert (row["strength"], row["seed"], row["lora"]) == (0.7, 7, "house-style")
    with urlopen(row["image"]) as reply, Image.open(BytesIO(reply.read())) as image:
        assert image.format == "PNG"
        assert json.loads(image.info["klein_lab"])["prompt"] == "a red cat"
    (small,) = pictures(drawn)
    assert small.size == (128, 128)


@pytest.mark.parametrize(("strengths", "seed"), [([0, 0.5], 7.0), (0.5, "7"), (["0", 0.5], 7)])
def test_an_agent_sends_lists_and_numbers_as_it_likes(page: gr.Blocks, strengths: object, seed: object) -> None:
    asked = {"lora": "house-style", "prompt": "a red cat", "strengths": strengths, "seed": seed}
    drawn = {"lora": "house-style", "prompt": "a red cat", "strength": "0.5", "seed": seed, "width": "64"}
    _, swept, one = ask(page, ("sweep", asked), ("generate", drawn))
    assert [(row["strength"], row["seed"]) for row in read(swept)] == [(0, 7), (0.5, 7)]
    assert (read(one)["strength"], read(one)["seed"]) == (0.5, 7)


def test_an_agent_lists_and_inspects_loras(page: gr.Blocks, home: Path) -> None:
    data = make_lora("new-style").path.read_bytes()
    uploaded = f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
    _, listed, named, sent = ask(
        page, ("list_finetunes", {}), ("inspect", {"lora": "style"}), ("inspect", {"file": uploaded})
    )
    known = {each["name"]: each for each in read(listed)}
    assert {"style", "subject", "overtrained", "house-style"} <= known.keys()
    assert known["subject"]["trigger_phrase"] == "ohwx"
    assert known["style"]["endpoint"] == "/v1/flux-2-klein-pocket-finetuned"
    assert read(named)["ok"]
    assert "pocket" in read(named)["base"]
    assert read(sent)["sha256"] == make_lora("new-style").sha256
    assert not list((home / "api").rglob(f"{make_lora('new-style').sha256}*")), "it is not kept"


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("sweep", {"lora": "nobody", "prompt": "a cat", "strengths": "0, 1", "seed": 7}, "no LoRA named 'nobody'"),
        ("generate", {"prompt": "a cat", "lora": "/etc/passwd"}, "no LoRA named '/etc/passwd'"),
        ("generate", {"prompt": "a cat", "seed": -5}, "Seed: -5"),
        ("inspect", {}, "Give either lora"),
        ("inspect", {"lora": "../../lab.sqlite3"}, "no LoRA named"),
        ("inspect", {"file": "/etc/passwd"}, "Invalid file data format"),
    ],
)
def test_an_agent_hears_what_is_wrong(page: gr.Blocks, tool: str, arguments: dict[str, object], words: str) -> None:
    _, answer = ask(page, (tool, arguments))
    assert answer.isError
    assert words in answer.content[0].text
