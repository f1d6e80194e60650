"""One way for an event to come in and go out: `Page` is the app's `gr.Blocks`, `Parts.on` wires an event of a tab.

A handler gets `(caller, values, said)`: who asks, what the fields hold, what was clicked. It returns what changed, by
the names of the tab's components; a run yields that, again and again. What goes wrong becomes words here, in the
component that the tab names for it: an error of ours in its own sentence; of any other, which is a fault of the app's,
the caller hears no more than that, and the log has all of it.

Events of one *lane* of one page are answered one after the other, in the order in which the page made them, so each
finds what the one before it left; pages never wait for each other. One that is overtaken on its way is waited for; if
it comes too late for that, it is still carried out, and draws only what no later one has drawn (`turns.py`).
`page.js` says what is clicked; see `Parts.live`.
"""

import inspect
import json
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import gradio as gr
from gradio.blocks import BlockFunction
from gradio.utils import get_upload_folder
from starlette.requests import Request

from evaluation.report.draw import part
from evaluation.tabs.fields import Form
from evaluation.tabs.quick_gradio import without_stubs
from evaluation.tabs.streams import settle_streams
from evaluation.tabs.turns import Turns
from lora_runtime.errors import InvalidInput, InvalidStrengths, KleinLabError
from lora_runtime.registry.visitors import Visitors
from lora_runtime.server.access import read_base_url
from lora_runtime.settings import Settings

FAULT: Final = (
    "The app failed on this, which is a fault of the app. Its log says why; try again, or try something else."
)

RUNS: Final = 16
"""How many runs of a kind may be under way at once, of all pages. Each holds one of the server's 40 threads."""

Component: TypeAlias = gr.components.Component | gr.blocks.BlockContext

Changes: TypeAlias = Mapping[Any, Any]
"""What a handler gives back: name of a component (or one of another tab) -> its new value, or `gr.update(…)`."""

SAVE_FILE: Final = """(file) => {
  if (!file) return;
  Object.assign(document.createElement("a"), { href: file.url, download: file.orig_name || "klein-lora-lab" }).click();
  document.dispatchEvent(new Event("klein-saved"));
}"""
"""Hand a prepared file to the browser's downloads."""

_WEB: Final = Path(__file__).parent / "web"
_SKIP: Final = gr.skip()


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks: the page, the organization it acts for, how it reaches this server, and the HTTP request itself."""

    session: str
    organization: str
    base_url: str = ""
    http: Request | None = None


@dataclass(frozen=True, kw_only=True)
class Said:
    """What was clicked, as page.js says it: `{act, id, value}`. A page may send anything, so each is read as a kind."""

    act: str = ""
    id: str = ""
    value: object = None

    @classmethod
    def read(cls, data: object) -> "Said":
        """Return what an event carries; nothing where it carries none of ours."""
        found = data if isinstance(data, dict) else {}
        return cls(act=str(found.get("act") or ""), id=str(found.get("id") or ""), value=found.get("value"))

    @property
    def text(self) -> str:
        """The value as one text."""
        return "" if self.value is None else str(self.value)

    @property
    def texts(self) -> tuple[str, ...]:
        """The value as several texts."""
        return tuple(str(each) for each in self.value) if isinstance(self.value, list) else ()

    @property
    def named(self) -> dict[str, str]:
        """The value as texts by name."""
        return {str(k): str(v) for k, v in self.value.items()} if isinstance(self.value, dict) else {}


Handler: TypeAlias = Callable[[Caller, Any, Said], Changes | Generator[Changes] | AsyncGenerator[Changes] | None]
"""`values` is the form that `reads` names, or else a mapping of names to what the components hold."""


@dataclass(frozen=True, kw_only=True)
class _Lane:
    """Which lane an event is of, and which of its inputs has its number."""

    name: str
    at: int


with without_stubs():

    class Page(gr.Blocks):  # type: ignore[misc]  # Gradio has no types
        """A `gr.Blocks` that knows its visitors, keeps the order of each one's events, and answers errors in words."""

        def __init__(self, visitors: Visitors, settings: Settings, **options: Any) -> None:
            super().__init__(**options)
            self.visitors = visitors
            self.settings = settings
            self.when_closed: list[Callable[[str], None]] = [visitors.leave, self._forget]
            self._lanes: dict[Callable[..., Any], _Lane] = {}
            self._turns: dict[tuple[str, str], Turns] = {}

        def queue(self, *given: Any, **named: Any) -> "Page":
            """Set the queue up as Gradio does; no answer is lost between two streams of a page."""
            super().queue(*given, **named)
            settle_streams(self._queue)
            return self

        def find_caller(self, request: gr.Request) -> Caller:
            """Return who sends an event."""
            session, http = request.session_hash or "", getattr(request, "request", None)
            chosen = self.settings
            base_url = f"http://{chosen.host}:{chosen.port}"
            if isinstance(http, Request):
                base_url = read_base_url(http, chosen.public_url)
            organization = self.visitors.organization(request.session_hash)
            return Caller(
                session=session,
                organization=organization,
                base_url=base_url,
                http=http if isinstance(http, Request) else None,
            )

        def wire_visits(self) -> gr.events.Dependency:
            """Learn whose browser shows the page before anything else is asked; forget it when the page is closed."""
            token = gr.Textbox(visible=False)

            def enter(value: str, request: gr.Request) -> None:
                self.visitors.enter(request.session_hash, value or "")

            def leave(request: gr.Request) -> None:
                for forget in self.when_closed:
                    forget(request.session_hash)

            self.unload(leave)
            js = read_script("visitor.js") if self.visitors.apart else None
            return self.load(enter, token, None, js=js, api_name="enter", **_QUIET)

        def set_lane(self, run: Callable[..., Any], lane: str, at: int) -> None:
            """Answer the events of `run` in the order of the numbers that stand in their input `at`."""
            self._lanes[run] = _Lane(name=lane, at=at)

        def _forget(self, session: str) -> None:
            for key in [key for key in self._turns if key[0] == session]:
                del self._turns[key]

        async def process_api(self, block_fn: BlockFunction | int, inputs: list[Any], *more: Any, **named: Any) -> Any:
            """Run an event: what came in, its handler, what goes out."""
            found = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
            lane = self._lanes.get(found.fn)
            if lane is None:
                return await self._answer(found, inputs, *more, **named)
            key = (str(named.get("session_hash") or ""), lane.name)
            turns = self._turns.setdefault(key, Turns())
            async with turns.take(inputs[lane.at] if len(inputs) > lane.at else None) as number:
                answer = await self._answer(found, inputs, *more, **named)
                # Nothing waits between here and the sending, so what is kept out cannot come after all.
                answer["data"] = turns.keep_newest(number, found.outputs, answer["data"])
                return answer

        async def _answer(self, block_fn: BlockFunction, inputs: list[Any], *more: Any, **named: Any) -> Any:
            try:
                return await super().process_api(block_fn, inputs, *more, **named)
            except gr.Error:
                raise
            except KleinLabError as error:
                raise gr.Error(str(error), print_exception=False) from error
            except Exception as error:
                raise gr.Error(FAULT) from error

        async def preprocess_data(self, block_fn: BlockFunction, inputs: list[Any], *more: Any, **named: Any) -> Any:
            """Make of what a caller sent the values of the event's fields."""
            wanted = len(block_fn.inputs)
            if len(inputs) < wanted:
                raise gr.Error(
                    f"/{block_fn.api_name} takes {wanted} values; {len(inputs)} came.", print_exception=False
                )
            try:
                return await super().preprocess_data(block_fn, inputs, *more, **named)
            except gr.Error:
                raise
            except Exception as error:
                raise gr.Error(
                    f"/{block_fn.api_name}: a value that was sent does not fit its field. “Use via API” at the foot of "
                    "the page says what each takes.",
                    print_exception=False,
                ) from error


_QUIET: Final = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(eq=False)
class Parts:
    """The components of a tab by name, `parts.prompt` or `parts["prompt"]`, and the wiring of their events.

    `problem` is the one that says what went wrong, in the words of `tell`, where an event names no other.
    """

    page: Page
    problem: str
    tell: Callable[[KleinLabError], str] = field(default=lambda error: draw_error(error))
    named: dict[str, Component] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._order = gr.Number(0, visible=False)

    def __getitem__(self, name: str) -> Component:
        return self.named[name]

    def __setitem__(self, name: str, part: Component) -> None:
        self.named[name] = part

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["named"][name]
        except KeyError:
            raise AttributeError(f"This tab has no component {name!r}.") from None

    def html(self, name: str, value: Any = "", **options: Any) -> gr.HTML:
        """Lay out a piece of HTML that events draw; nothing in it is clicked."""
        self.named[name] = made = gr.HTML(value, apply_default_css=False, **options)
        return made

    def live(self, name: str, value: Any = "", *, scripts: Sequence[str] = (), **options: Any) -> gr.HTML:
        """Lay out a piece of HTML whose `data-act` page.js tells; `scripts` of web/ follow it."""
        return self.html(name, value, js_on_load="\n".join(map(read_script, ("page.js", *scripts))), **options)

    def changes(self, changes: Changes) -> dict[Component, Any]:
        """Return changes by component: what another tab's handler, or Gradio, takes, which takes an update apart."""
        return {
            self.named[key] if isinstance(key, str) else key: {**value} if isinstance(value, dict) else value
            for key, value in changes.items()
        }

    def on(
        self,
        trigger: Any,
        handler: Handler,
        *,
        reads: type[Form] | Sequence[str] = (),
        draws: Sequence[str | Component],
        problem: str = "",
        tell: Callable[[KleinLabError], str] | None = None,
        failed: Changes | None = None,
        lane: str = "",
        goes_to: str = "",
        **options: Any,
    ) -> gr.events.Dependency:
        """Wire an event, or a list of them; a handler that yields is a run, and many are under way at once.

        An async handler that yields holds no thread while it waits, so any number of pages may wait in one.
        `draws` names all that it may change. `failed` is drawn when it ends with an error, whichever. `lane` puts the
        events of a page in turn. `goes_to` is the id of an element that the page scrolls to at once, if out of sight.
        """
        names = tuple(reads.model_fields) if isinstance(reads, type) else tuple(reads)
        inputs = sorted({self._order, *(self.named[name] for name in names)}, key=lambda part: part._id)
        outputs = {self.named[each] if isinstance(each, str) else each for each in (*draws, problem or self.problem)}
        outputs.add(self._order)
        told = tell or (draw_error if problem else self.tell)
        run = self._wrap(handler, reads, names, lambda error: {problem or self.problem: told(error)}, failed or {})
        chosen: dict[str, Any] = {**_QUIET, "api_name": handler.__name__.strip("_"), "concurrency_limit": None}
        if inspect.isgeneratorfunction(handler):
            chosen |= {"concurrency_limit": RUNS, "concurrency_id": f"runs of {self.problem}"}
        elif lane:
            # One queue, so that Gradio takes them as they come; the page's numbers say the rest.
            chosen |= {"concurrency_id": f"lane {lane}", "trigger_mode": "multiple"}
            self.page.set_lane(run, lane, inputs.index(self._order))
        if lane or goes_to:
            chosen["js"] = _script(lane, inputs.index(self._order), goes_to)
        wire = trigger if isinstance(trigger, partial) else partial(gr.on, trigger)  # `event.then` wires by itself
        return wire(run, set(inputs), outputs, **{**chosen, **options})

    def save(self, event: gr.events.Dependency, name: str) -> None:
        """Hand the file that an event puts into a hidden `gr.DownloadButton` to the browser's downloads."""
        event.then(None, self.named[name], None, js=SAVE_FILE, api_visibility="private")

    def _wrap(
        self,
        handler: Handler,
        reads: type[Form] | Sequence[str],
        names: Sequence[str],
        tell: Callable[[KleinLabError], Changes],
        failed: Changes,
    ) -> Callable[..., Any]:
        """The function that Gradio calls: makes what the handler takes, and components of what it returns."""
        nothing = {self._order: _SKIP}  # Gradio takes an empty answer for a missing one, and none at all for emptiness

        def call(values: Mapping[Component, Any], event: gr.EventData, request: gr.Request) -> Any:
            found = {name: values.get(self.named[name]) for name in names}
            form = reads.read(found) if isinstance(reads, type) else found
            return handler(self.page.find_caller(request), form, Said.read(event._data))

        def answer(values: dict, event: gr.EventData, request: gr.Request) -> Any:  # type: ignore[type-arg]
            try:
                return self.changes(call(values, event, request) or {}) or nothing
            except KleinLabError as error:
                return self.changes({**failed, **tell(error)})

        def end(error: Exception) -> Any:
            return self.changes({**failed, **(tell(error) if isinstance(error, KleinLabError) else {})}) or nothing

        def follow(values: dict, event: gr.EventData, request: gr.Request) -> Any:  # type: ignore[type-arg]
            changes = None
            try:
                for changes in call(values, event, request):
                    yield self.changes(changes) or nothing
                if changes is None:
                    yield nothing
            except Exception as error:
                yield end(error)
                if not isinstance(error, KleinLabError):
                    raise

        async def wait(values: dict, event: gr.EventData, request: gr.Request) -> Any:  # type: ignore[type-arg]
            changes = None
            try:
                async with aclosing(call(values, event, request)) as shown:
                    async for changes in shown:
                        yield self.changes(changes) or nothing
                if changes is None:
                    yield nothing
            except Exception as error:
                yield end(error)
                if not isinstance(error, KleinLabError):
                    raise

        if inspect.isasyncgenfunction(handler):
            return wait
        return follow if inspect.isgeneratorfunction(handler) else answer


def keep_file(data: bytes, name: str) -> str:
    """Return where a file to download lies in Gradio's own cache, which empties itself."""
    return str(gr.processing_utils.save_bytes_to_cache(data, name, get_upload_folder()))


def draw_error(error: KleinLabError) -> str:
    """Return an error in words; they say what to do, and for strengths where."""
    place = (error.text, error.position) if isinstance(error, InvalidStrengths) else None
    return part("error", text=str(error), place=place, field=error.label if isinstance(error, InvalidInput) else "")


def read_script(name: str) -> str:
    """Return a script of web/."""
    return (_WEB / name).read_text(encoding="utf-8")


def _script(lane: str, order_at: int, goes_to: str) -> str:
    """JavaScript that an event runs first: it numbers the event among those of its page and lane, and scrolls."""
    order = f"(window.kleinOrder ??= {{}})[{json.dumps(lane)}]"
    number = f"all[{order_at}] = {order} = ({order} ?? 0) + 1;" if lane else ""
    scroll = f"document.dispatchEvent(new CustomEvent('klein-go', {{ detail: {json.dumps(goes_to)} }}));"
    return f"(...all) => {{ {number} {scroll if goes_to else ''} return all; }}"
