"""What happens with a sweep: run, stop, continue, more strengths, rate, open an earlier one, download its grid.

Each page has at most one sweep under way here; closing it stops the sweep at the next denoising step with everything
done kept. More strengths make a new run that has the old ones too: what was rendered before, here or in any other run,
is not rendered again, and the buttons say how many images are new.
"""

import io
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any, Final

import gradio as gr

from evaluation.axes import SweepSpec
from evaluation.grid import extend_spec, name_lora, plan
from evaluation.judge.answer import Answer, answer_run, tell_cells
from evaluation.judge.prompt_fit import score_prompts
from evaluation.prompt_sets import describe_effort, make_run_sure
from evaluation.report.cards import WAITING, view_answers, view_verdict
from evaluation.report.contact_sheet import grid_png
from evaluation.report.draw import draw, part
from evaluation.store.records import CellRecord, Run, Verdict
from evaluation.store.store import Store
from evaluation.strengths import format_strength, format_strengths, note_strengths, parse_strengths, refine_strengths
from evaluation.sweep import Planned, SweepEvent, resume_sweep, run_sweep
from evaluation.tabs.follow import Moment, Runs
from evaluation.tabs.live_grid import LiveGrid, draw_grid
from evaluation.tabs.page import Caller, Changes, Said, draw_error, keep_file
from evaluation.tabs.sweep_fields import SweepFields
from evaluation.tabs.sweep_form import RunOnPage, SweepForm, SweepPage, fill_form, make_form_spec
from lora_runtime.backends.base import Backend
from lora_runtime.errors import InvalidInput, KleinLabError, NotAuthorized, NotFound
from lora_runtime.registry.shelf import Shelf
from lora_runtime.values import Precision
from lora_runtime.written import quote, read_whole

LINK: Final = "sweep"
"""`?sweep=RUN` opens a run when the page loads; grid.js writes it into the address bar."""

BETWEEN: Final = 3
"""How many values Refine puts between two strengths: each gap becomes four."""

SOMEBODY_ELSES: Final = "somebody else’s sweep, to look at: Run sweep makes one of your own"

Shown = Generator[Changes]


class SweepRuns:
    """Events of a run and of the grid that shows it."""

    def __init__(self, backends: Mapping[str, Backend], store: Store, shelf: Shelf, fields: SweepFields) -> None:
        self._backends = backends
        self._store = store
        self._shelf = shelf
        self._fields = fields
        self._runs = Runs()

    def load(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """When a page opens: fill the lists, open the run that its address names."""
        linked = caller.http.query_params.get(LINK) if caller.http else None
        return {**self._fields.list_all(caller), **(self._open(caller, linked) if linked else {})}

    def open(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """Show an earlier run and fill the form with it; an id that is none leaves the form as it is."""
        return self._open(caller, str(values["earlier"])) if values["earlier"] else {}

    def run(self, caller: Caller, page: SweepPage, said: Said) -> Shown:
        """Run the sweep of the form."""

        def start(cancel: threading.Event) -> Iterator[SweepEvent]:
            spec = make_form_spec(self._backends, page, partial(self._shelf.find, caller.organization))
            return self._start(spec, caller.organization, cancel)

        yield from self._go(caller, page, "Getting ready …", start)

    def resume(self, caller: Caller, page: RunOnPage, said: Said) -> Shown:
        """Render the cells of the run on the page that have no image, the failed ones again."""

        def start(cancel: threading.Event) -> Iterator[SweepEvent]:
            run = self._find_own(caller, page.run_id)
            return resume_sweep(run.id, backend=self._backends, store=self._store, cancel=cancel)

        yield from self._go(caller, page, "Going on …", start)

    def add(self, caller: Caller, page: RunOnPage, said: Said) -> Shown:
        """Run the sweep on the page again with the strengths that are written too."""
        last = yield from self._extend(caller, page, lambda _: parse_strengths(page.add_values))
        if last is not None and last.finished:
            yield {"add_values": ""}

    def refine(self, caller: Caller, page: RunOnPage, said: Said) -> Shown:
        """Run the sweep on the page again with strengths between those of A and B too."""
        yield from self._extend(caller, page, lambda records: find_between(records, page.chosen))

    def make_sure(self, caller: Caller, page: RunOnPage, said: Said) -> Shown:
        """Run the sweep that makes the answer of the one on the page sure."""

        def start(cancel: threading.Event) -> Iterator[SweepEvent]:
            run = self._find_own(caller, page.run_id)
            return self._start(make_run_sure(self._store, run), run.organization, cancel)

        yield from self._go(caller, page, "Making sure …", start)

    def stop(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """Stop this page's sweep; its generator shows the end."""
        self._runs.stop(caller.session)
        return {"stop": gr.update(value="Stopping …", interactive=False)}

    def forget(self, session: str) -> None:
        """Stop the sweep of a page that was closed."""
        self._runs.stop(session)

    def note(self, caller: Caller, page: SweepPage, said: Said) -> Changes:
        """After a run, however it ended: it can be opened again, its speed is known, and what is there can go on."""
        if self._runs.is_running(caller.session):
            return {}
        lists = {**self._fields.list_earlier(caller), **self._fields.echo(caller, page, said)}
        if page.run_id is None:
            return {**lists, **_buttons(running=False)}
        run, records = self._store.look(page.run_id)
        own = run.organization == caller.organization
        return {**lists, **_buttons(running=False, records=records, own=own), **self.go_on(caller, page, said)}

    def choose(self, caller: Caller, page: RunOnPage, said: Said) -> Changes:
        """Note which cells are A and B, and say what lies between them."""
        chosen = _read_chosen(said.texts)
        return {"chosen": chosen, **self.describe(caller, page.model_copy(update={"chosen": chosen}), said)}

    def rate(self, caller: Caller, page: RunOnPage, said: Said) -> Changes:
        """Keep the rating of a cell (0 takes it away; its note stays); the page shows it already."""
        position, rating = read_whole("Cell", said.id), read_whole("Rating", said.text)
        run = self._find_own(caller, page.run_id)
        record = next((record for record in self._store.cells(run.id) if record.cell.position == position), None)
        self._store.rate(run.id, position, rating or None, record.note if record else "")
        return {}

    def go_on(self, caller: Caller, page: RunOnPage, said: Said) -> Changes:
        """Say how the run on the page can go on: with more strengths, and with more scenes and what those take."""
        return {**self.describe(caller, page, said), **self._offer_sure(caller, page)}

    def describe(self, caller: Caller, page: RunOnPage, said: Said) -> Changes:
        """Say on Add and Refine how many images are new; a sweep under way or of somebody else cannot be extended."""
        idle = gr.update(interactive=False)
        run, records = self._store.look(page.run_id) if page.run_id else (None, ())
        if run is None or self._runs.is_running(caller.session) or run.organization != caller.organization:
            return {"add": idle, "refine": idle, "extend_hint": ""}
        refine, hint = self._describe_refine(run.spec, records, page.chosen)
        count = 0
        try:
            if page.add_values.strip():
                count = self._count_new(run.spec, records, parse_strengths(page.add_values))
                hint = note_strengths(page.add_values) or hint if count else "Those strengths are in the grid already."
            shown = part("hint", text=hint)
        except KleinLabError as error:
            shown = draw_error(error)
        add = gr.update(value=f"Add {_images(count)}" if count else "Add", interactive=count > 0)
        return {"refine": refine, "add": add, "extend_hint": shown}

    def download(self, caller: Caller, page: RunOnPage, said: Said) -> Changes:
        """Make the labelled grid of the run on the page a file to download."""
        if page.run_id is None:
            return {}
        run, records = self._store.look(page.run_id)
        buffer = io.BytesIO()
        grid_png(run.spec, records).save(buffer, format="PNG")
        return {"download_file": keep_file(buffer.getvalue(), f"{run.id}.png")}

    def _offer_sure(self, caller: Caller, page: RunOnPage) -> Changes:
        run, hint, sure = self._store.run(page.run_id) if page.run_id else None, "", None
        if run and run.organization == caller.organization and not self._runs.is_running(caller.session):
            try:
                sure = make_run_sure(self._store, run)
                scenes = f"{len(sure.prompts)} prompts × {len(sure.seeds)} seeds at {format_strengths(sure.strengths)}"
                hint = f"{scenes}: {describe_effort(sure, self._store)}."
            except KleinLabError as error:
                hint = str(error)
        return {"sure": gr.update(interactive=sure is not None), "sure_hint": part("hint", text=hint)}

    def _start(self, spec: SweepSpec, organization: str, cancel: threading.Event) -> Iterator[SweepEvent]:
        return run_sweep(spec, backend=self._backends, store=self._store, cancel=cancel, organization=organization)

    def _extend(
        self, caller: Caller, page: RunOnPage, find: Callable[[Sequence[CellRecord]], Iterable[Decimal]]
    ) -> Generator[Changes, None, Moment | None]:
        def start(cancel: threading.Event) -> Iterator[SweepEvent]:
            run = self._find_own(caller, page.run_id)
            spec = extend_spec(run.spec, find(self._store.cells(run.id)))
            return self._start(spec, run.organization, cancel)

        return (yield from self._go(caller, page, "Adding strengths …", start))

    def _find_own(self, caller: Caller, run_id: str | None) -> Run:
        """The run on the page. Others may look at it, but not change it."""
        if run_id is None:
            raise InvalidInput("There is no sweep yet. Press Run sweep first.")
        run = self._store.run(run_id)
        if run.organization != caller.organization:
            raise NotAuthorized("This sweep is somebody else's. Press Run sweep to make one of your own.")
        return run

    def _go(
        self, caller: Caller, page: RunOnPage, words: str, start: Callable[[threading.Event], Iterator[SweepEvent]]
    ) -> Generator[Changes, None, Moment | None]:
        """Show a sweep from the click to its end and return it; one that the page still has under way is stopped.

        A sweep that cannot start leaves the page as it is: `note` makes usable again what is still there.
        """
        moment: Moment | None = None
        grid = LiveGrid()
        yield {**_buttons(running=True), "status": part("message", text=words, running=True)}
        for moment in self._runs.follow(caller.session, start, estimate=self._estimate):
            if moment.is_last:
                yield self._end(moment)
                continue
            if moment.is_first:
                moment.records = _fresh(moment.records)
                grid = draw_grid(moment.planned.spec, moment.records, running=True)
                yield {"run_id": moment.planned.run_id, "verdict": draw_outcome(WAITING)}
            grid = grid.with_cells(moment.records[position] for position in moment.changed)
            yield {"grid": grid.value(), "status": _draw_status(moment)}
        # The images are there and the buttons work; what the answer measures may take a model and seconds.
        if moment and moment.finished and not moment.cancelled and not self._runs.is_running(caller.session):
            yield from self._answer(caller, moment.planned.run_id)
        return moment

    def _estimate(self, planned: Planned) -> float | None:
        """The seconds of the cells that are left, where the last ones like them say it."""
        left = Counter(_speed_key(record) for record in planned.cells if record.state != "done")
        known = {key: self._store.seconds_per_image(*key) for key in left}
        if None in known.values():
            return None
        return sum((known[key] or 0) * count for key, count in left.items())

    def _end(self, moment: Moment) -> Changes:
        spec, records = moment.planned.spec, self._store.cells(moment.planned.run_id)
        shown = {"grid": draw_grid(spec, records).value(), **_buttons(running=False, records=records)}
        if moment.error is not None or moment.finished is None:
            return {**shown, "status": draw_error(moment.error)} if moment.error else shown
        stopped = moment.finished.stopped
        words = (
            _words(records) if stopped or _count(records, "failed") else [f"done in {moment.seconds_passed():.1f} s"]
        )
        return {
            **shown,
            "verdict": draw_outcome(moment.finished.verdict, measuring=not stopped),
            "status": _draw_progress(records, words, running=False),
        }

    def _answer(self, caller: Caller, run_id: str) -> Shown:
        """Say which strength; not when the page has started another sweep meanwhile."""
        problem, answers = "", tuple[Answer, ...]()
        try:
            for _ in score_prompts(self._store, self._store.cells(run_id)):
                pass
            answers = answer_run(self._store, run_id)
        except KleinLabError as error:
            problem = str(error)
        run, records = self._store.look(run_id)
        if not self._runs.is_running(caller.session):
            yield {
                "grid": draw_grid(run.spec, records, answers=answers).value(),
                "verdict": draw_outcome(run.verdict or WAITING, answers, problem=problem),
            }

    def _open(self, caller: Caller, run_id: str) -> Changes:
        try:
            run, records = self._store.look(run_id)
        except NotFound:
            # Not the error's own words: those tell whoever sits at the machine which command lists the runs.
            text = f"There is no sweep {quote(run_id)} here. The link may be cut short, or the sweep was deleted."
            return {"status": part("error", text=text)}
        form, missing = self._find_form(caller, run.spec)
        own, (answers, problem) = run.organization == caller.organization, tell_cells(self._store, records)
        status = _draw_progress(records, _words(records) if own else [SOMEBODY_ELSES], running=False)
        if missing:
            text = f"Its LoRA “{missing}” is not among yours: choose one to run it yourself."
            status += part("hint", text=text, kind="warn")
        return {
            **self._fields.fill(caller, form),
            "run_id": run.id,
            "grid": draw_grid(run.spec, records, own=own, answers=answers).value(),
            "verdict": draw_outcome(run.verdict or WAITING, answers, problem=problem),
            "status": status,
            **_buttons(running=False, records=records, own=own),
        }

    def _find_form(self, caller: Caller, spec: SweepSpec) -> tuple[SweepForm, str]:
        """The form of a run with the LoRAs as this visitor calls them, and the name of its first if they lack it."""
        mine = {ref.sha256: ref.name for ref in reversed(self._fields.list_loras(caller))}
        first, *others = (*spec.loras, None) if not spec.loras else spec.loras
        named = {
            "lora": mine.get(first.sha256) if first else None,
            "more_loras": tuple(mine[lora.sha256] for lora in others if lora and lora.sha256 in mine),
        }
        return fill_form(spec).model_copy(update=named), name_lora(spec) if first and not named["lora"] else ""

    def _describe_refine(
        self, spec: SweepSpec, records: Sequence[CellRecord], chosen: tuple[int, int] | None
    ) -> tuple[dict[str, Any], str]:
        try:
            low, high = _ends(records, chosen)
            between = find_between(records, chosen)
            count = self._count_new(spec, records, between)
        except KleinLabError as error:
            return gr.update(value="Refine", interactive=False), str(error)
        ends = f"{format_strength(low)} to {format_strength(high)}"
        if not count:
            hint = f"Between {format_strength(low)} and {format_strength(high)} everything is rendered."
            return gr.update(value=f"Refine {ends}", interactive=False), hint
        hint = f"Refine adds {format_strengths(between)}: between the cells A and B."
        return gr.update(value=f"Refine {ends}: {_images(count)}", interactive=True), hint

    def _count_new(self, spec: SweepSpec, records: Sequence[CellRecord], strengths: Iterable[Decimal]) -> int:
        """How many images of the new strengths nobody has rendered yet; what the old ones lack does not count."""
        wanted = {cell.identity for cell in plan(extend_spec(spec, strengths))}
        wanted -= {record.cell.identity for record in records}
        return sum(self._store.image(identity) is None for identity in wanted)


def find_between(records: Sequence[CellRecord], chosen: tuple[int, int] | None) -> tuple[Decimal, ...]:
    """Return the strengths that Refine adds.

    Raises:
        InvalidInput: There are no two cells of different strengths to go between.
    """
    low, high = _ends(records, chosen)
    between = refine_strengths(low, high, BETWEEN)
    if not between:
        raise InvalidInput("There is no strength between A and B: they are 0.0001 apart.")
    return between


def draw_outcome(
    verdict: Verdict, answers: Sequence[Answer] = (), *, measuring: bool = False, problem: str = ""
) -> str:
    """Return what a sweep says when it ends, as cards."""
    cards = (view_verdict(verdict), *view_answers(verdict, answers, measuring=measuring, problem=problem))
    return draw("outcome.html", cards=cards, live=True)


def _ends(records: Sequence[CellRecord], chosen: tuple[int, int] | None) -> tuple[Decimal, Decimal]:
    strengths = {record.cell.position: record.cell.request.strength for record in records}
    found = {strengths[position] for position in chosen or () if position in strengths}
    if len(found) < 2:
        raise InvalidInput("Click two cells of different strengths to refine between them.")
    low, high = sorted(found)
    return low, high


def _read_chosen(sides: Sequence[str]) -> tuple[int, int] | None:
    """The page may send anything."""
    try:
        a, b = sides
        return read_whole("A", a), read_whole("B", b)
    except (ValueError, InvalidInput):
        return None


def _buttons(*, running: bool, records: Sequence[CellRecord] = (), own: bool = True) -> Changes:
    left, failed = _count(records, "pending"), _count(records, "failed")
    label = f"Continue: {left} left" if left else f"Retry {failed} failed" if failed else "Continue"
    return {
        "run": gr.update(interactive=not running, value="Running …" if running else "Run sweep"),
        "stop": gr.update(interactive=running, value="Stop"),
        "resume": gr.update(interactive=not running and own and bool(left or failed), value=label),
        "download": gr.update(interactive=not running and _count(records, "done") > 0),
        "add": gr.update(interactive=False),
        "refine": gr.update(interactive=False),
        "sure": gr.update(interactive=False),
    }


def _fresh(records: Sequence[CellRecord]) -> list[CellRecord]:
    """What failed is tried again: it waits, like the others."""
    return [replace(record, state="pending", error=None) if record.state == "failed" else record for record in records]


def _draw_status(moment: Moment) -> str:
    """The one live line of a run: "5 of 8 · step 3 of 4 · about 4 s left"."""
    left = moment.seconds_left()
    words = ["the model starts"] if moment.is_first else []
    if moment.stepped:
        words.append(f"step {moment.stepped.step} of {moment.stepped.steps}")
        if moment.stepped.engines > 1:
            words.append(f"{moment.stepped.engines} engines")
    if not moment.is_first and left is not None and left > 0:
        words.append(f"about {max(1, round(left))} s left")
    return _draw_progress(moment.records, words, running=True)


def _draw_progress(records: Sequence[CellRecord], words: Sequence[str], *, running: bool) -> str:
    done, total = _count(records, "done"), len(records)
    line = " · ".join([f"{done} of {total}", *words])
    return part("progress", text=line, done=done, total=total, running=running)


def _words(records: Sequence[CellRecord]) -> list[str]:
    left, failed = _count(records, "pending"), _count(records, "failed")
    words = [f"{failed} failed: Retry tries them again"] if failed else []
    return [*words, f"stopped, {left} left: Continue renders only those"] if left else words


def _count(records: Sequence[CellRecord], state: str) -> int:
    return sum(record.state == state for record in records)


def _speed_key(record: CellRecord) -> tuple[str, Precision, int, int, int]:
    request = record.cell.request
    return request.weights, request.precision, request.width, request.height, request.steps


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
