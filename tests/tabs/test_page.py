"""What `page.py` does for every tab: who asks and what was said, words for errors, the order of a page's events."""

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import gradio as gr
import pytest
from pydantic import Field

from evaluation.tabs import turns
from evaluation.tabs.fields import Box, Form
from evaluation.tabs.page import FAULT, Caller, Changes, Page, Parts, Said
from lora_runtime.errors import InvalidInput, InvalidStrengths
from lora_runtime.registry.visitors import Visitors
from lora_runtime.settings import Settings


class Asked(Form):
    """Two fields, as a tab would have them."""

    prompt: Annotated[str, Box(gr.Textbox, label="Prompt")] = "a red cat"
    steps: Annotated[int | None, Field(ge=1), Box(gr.Number, label="Steps", precision=0)] = None


SKIP = gr.skip()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def page(tmp_path: Path, runner: asyncio.Runner) -> Page:
    async def make() -> Page:  # Gradio makes locks, which take the loop that runs
        return Page(Visitors(apart=True), Settings(home=tmp_path, port=7860))

    return runner.run(make())


Wire: TypeAlias = Callable[..., int]


@pytest.fixture
def wire(page: Page, runner: asyncio.Runner) -> Wire:
    """Makes a tab with a form, a grid, a status line and one event, and returns the number of the event."""

    async def make(handler: Callable[..., Any], **options: Any) -> int:
        with page:
            parts = Parts(page, problem="status")
            Asked.lay_out(parts, "prompt", "steps")
            for name in ("status", "grid"):
                parts.html(name)
            return int(parts.on(parts.prompt.change, handler, draws=("grid",), **options)["id"])

    return lambda handler, **options: runner.run(make(handler, **options))


async def send(page: Page, event: int, *inputs: Any, session: str = "one", said: Any = None) -> list[Any]:
    """What the page is told: the grid and the status line, in the order in which they were laid out."""
    request = gr.Request(session_hash=session)
    data = gr.EventData(None, said)
    answer = await page.process_api(event, list(inputs), request=request, session_hash=session, event_data=data)
    outputs = {id(part): value for part, value in zip(page.fns[event].outputs, answer["data"], strict=True)}
    shown = [part for part in page.fns[event].outputs if isinstance(part, gr.HTML)]
    told = [outputs[id(part)] for part in sorted(shown, key=lambda part: part._id)]
    return [SKIP if isinstance(value, dict) and "value" not in value else value for value in told]


def test_a_handler_is_told_who_asks_what_the_form_holds_and_what_was_said(
    page: Page, wire: Wire, runner: asyncio.Runner
) -> None:
    heard: list[tuple[Caller, Asked, Said]] = []

    def handle(caller: Caller, form: Asked, said: Said) -> Changes:
        heard.append((caller, form, said))
        return {"grid": form.prompt}

    event = wire(handle, reads=Asked)
    said = {"act": "open", "id": 7, "value": ["a", 1]}
    status, grid = runner.run(send(page, event, 0, "a boat", 4.0, said=said))
    ((caller, form, told),) = heard
    assert (caller.session, caller.organization) == ("one", page.visitors.organization("one"))
    assert form == Asked(prompt="a boat", steps=4)
    assert (told.act, told.id, told.texts) == ("open", "7", ("a", "1"))
    assert (status, grid) == (SKIP, "a boat")


@pytest.mark.parametrize("data", [None, "text", 3, [], {"act": None, "value": {"a": 1}}])
def test_a_page_may_say_anything(data: object) -> None:
    said = Said.read(data)
    assert (said.act, said.id, said.texts) == ("", "", ())
    assert said.named == ({"a": "1"} if isinstance(data, dict) else {})


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InvalidInput("Seed: <b>x</b> is no number."), "Seed: &lt;b&gt;x&lt;/b&gt; is no number."),
        (InvalidStrengths("Strengths: what is “x”?", text="0, x", position=3), "<span>0, </span><mark>x</mark>"),
    ],
)
def test_an_error_of_ours_is_told_in_the_problem_part(
    page: Page, wire: Wire, runner: asyncio.Runner, error: Exception, told: str
) -> None:
    def fail(*_: Any) -> Changes:
        raise error

    status, grid = runner.run(send(page, wire(fail), 0))
    assert told in status
    assert grid == SKIP


def test_what_does_not_fit_a_field_is_told_by_its_label(page: Page, wire: Wire, runner: asyncio.Runner) -> None:
    event = wire(lambda *_: pytest.fail("it was called"), reads=Asked)
    status, _ = runner.run(send(page, event, 0, "a boat", 0))
    assert "Steps: &#39;0&#39; does not fit. Input should be greater than or equal to 1." in status


def test_any_other_error_tells_no_more_than_that_it_is_ours(page: Page, wire: Wire, runner: asyncio.Runner) -> None:
    def fail(*_: Any) -> Changes:
        raise RuntimeError("/home/me/secret")

    with pytest.raises(gr.Error, match=FAULT[:20]):
        runner.run(send(page, wire(fail), 0))


def make_run(changes: Sequence[Changes], fault: Exception | None, *, waits: bool) -> Callable[..., Any]:
    """A handler that yields, in a thread or as one that waits in the loop."""

    def run(*_: Any) -> Generator[Changes]:
        yield from changes
        if fault is not None:
            raise fault

    async def wait(*_: Any) -> AsyncGenerator[Changes]:
        for each in run():
            yield each

    return wait if waits else run


def collect(runner: asyncio.Runner, page: Page, event: int) -> list[Any]:
    """Each thing that an event tells the page, up to its end or to a fault of the app's."""
    call = page.fns[event].fn
    assert call is not None
    drawn: list[Any] = []
    asked = ({}, gr.EventData(None, None), gr.Request(session_hash="one"))

    async def gather() -> None:
        async for changes in call(*asked):
            drawn.append(changes)

    with suppress(RuntimeError):
        if inspect.isasyncgenfunction(call):
            runner.run(gather())
        else:
            drawn.extend(call(*asked))
    return drawn


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("fault", [InvalidInput("No such LoRA."), RuntimeError("no such thing")])
def test_a_run_that_fails_leaves_its_buttons_usable(
    page: Page, wire: Wire, runner: asyncio.Runner, fault: Exception, waits: bool
) -> None:
    event = wire(make_run([{"grid": "half"}], fault, waits=waits), failed={"grid": "ready"})
    status, grid = sorted((o for o in page.fns[event].outputs if isinstance(o, gr.HTML)), key=lambda part: part._id)
    drawn = collect(runner, page, event)
    assert [changes.get(grid) for changes in drawn[:1]] + [changes[grid] for changes in drawn[1:]] == ["half", "ready"]
    assert (status in drawn[-1]) == isinstance(fault, InvalidInput)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("changes", [[], [{}]])
def test_a_run_that_has_nothing_to_show_leaves_the_page_as_it_is(
    page: Page, wire: Wire, runner: asyncio.Runner, waits: bool, changes: Sequence[Changes]
) -> None:
    event = wire(make_run(changes, None, waits=waits))
    (told,) = collect(runner, page, event)
    assert list(told.values()) == [SKIP]


def test_what_an_error_draws_is_whole_each_time(page: Page, wire: Wire, runner: asyncio.Runner) -> None:
    def fail(*_: Any) -> Changes:
        raise InvalidInput("No such LoRA.")

    event = wire(fail, failed={"grid": gr.update(value="ready", visible=True)})
    for _ in range(2):
        _, grid = runner.run(send(page, event, 0))
        assert grid["value"] == "ready", "Gradio takes an update apart"


def make_slow(seen: list[str]) -> tuple[Callable[..., Changes], dict[str, threading.Event]]:
    """A handler that notes the prompt, and waits where that names a gate."""
    gates = {"slow": threading.Event()}

    def handle(_: Caller, form: Asked, said: Said) -> Changes:
        if form.prompt in gates:
            assert gates[form.prompt].wait(60)
        seen.append(form.prompt)
        return {"grid": form.prompt, **({"status": "open"} if said.act else {})}

    return handle, gates


def test_events_of_a_page_are_answered_in_its_order_and_pages_do_not_wait_for_each_other(
    page: Page, wire: Wire, runner: asyncio.Runner
) -> None:
    seen: list[str] = []
    handle, gates = make_slow(seen)
    event = wire(handle, reads=Asked, lane="log")

    async def go() -> None:
        first = asyncio.create_task(send(page, event, 1, "slow", None))
        await asyncio.sleep(0)
        late = [asyncio.create_task(send(page, event, number, str(number), None)) for number in (4, 2, 3)]
        assert await send(page, event, 1, "other page", None, session="two") == [SKIP, "other page"]
        assert not first.done()
        gates["slow"].set()
        await asyncio.gather(first, *late)

    runner.run(go())
    assert seen == ["other page", "slow", "2", "3", "4"]


def test_an_event_waits_for_the_one_that_it_overtook(page: Page, wire: Wire, runner: asyncio.Runner) -> None:
    seen: list[str] = []
    event = wire(make_slow(seen)[0], reads=Asked, lane="log")

    async def go() -> list[list[Any]]:
        later = asyncio.create_task(send(page, event, 2, "newer", None))
        await asyncio.sleep(0.1)
        return [await send(page, event, 1, "older", None), await later]

    assert runner.run(go()) == [[SKIP, "older"], [SKIP, "newer"]]
    assert seen == ["older", "newer"]


def test_an_overtaken_answer_draws_only_what_no_later_one_has_drawn(
    page: Page, wire: Wire, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "ON_ITS_WAY_S", 0)
    seen: list[str] = []
    event = wire(make_slow(seen)[0], reads=Asked, lane="log")

    async def go() -> list[list[Any]]:
        sent = ((2, "newer", None), (1, "older", {"act": "open"}), (None, "a program", None), (3, "newest", None))
        return [await send(page, event, number, prompt, None, said=said) for number, prompt, said in sent]

    assert runner.run(go()) == [[SKIP, "newer"], ["open", SKIP], [SKIP, "a program"], [SKIP, "newest"]]
    assert seen == ["newer", "older", "a program", "newest"]


def test_a_page_that_was_closed_leaves_nothing_behind(page: Page, wire: Wire, runner: asyncio.Runner) -> None:
    event = wire(make_slow([])[0], reads=Asked, lane="log")
    runner.run(send(page, event, 5, "before", None))
    for forget in page.when_closed:
        forget("one")
    assert runner.run(send(page, event, 1, "after", None)) == [SKIP, "after"]
