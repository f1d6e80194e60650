"""What happens with a sweep: run, stop, continue, follow, open an earlier one, rate, download its grid.

A sweep is no page's: it goes on when its page is closed, and every page that opens its link follows it. Who has the
link may look; the visitors of its organization may stop it, go on with it and rate it. `sweep_extend` makes more of it.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import gradio as gr

from evaluation.axes import SweepSpec
from evaluation.grid import name_lora
from evaluation.judge.answer import tell_cells
from evaluation.report.animation import strengths_webp
from evaluation.report.contact_sheet import grid_bytes
from evaluation.report.draw import part
from evaluation.store.records import CellRecord, Run
from evaluation.store.store import Store
from evaluation.tabs.follow import Watches
from evaluation.tabs.page import Caller, Changes, Said, keep_file
from evaluation.tabs.sweep_fields import SweepFields
from evaluation.tabs.sweep_form import RunOnPage, SweepForm, SweepPage, fill_form, make_form_spec
from evaluation.tabs.sweep_view import LiveRun, draw_ended
from evaluation.under_way import Going, UnderWay
from lora_runtime.backends.base import Backend
from lora_runtime.errors import InvalidInput, NotAuthorized, NotFound
from lora_runtime.registry.shelf import Shelf
from lora_runtime.written import count_of, quote, read_whole

LINK: Final = "sweep"
"""`?sweep=RUN` opens a run when the page loads; grid.js writes it into the address bar."""

Shown = Generator[Changes]


class SweepRuns:
    """Events of a run and of the grid that shows it."""

    def __init__(
        self, backends: Mapping[str, Backend], store: Store, shelf: Shelf, fields: SweepFields, under_way: UnderWay
    ) -> None:
        self._backends = backends
        self._store = store
        self._shelf = shelf
        self._fields = fields
        self._under_way = under_way
        self._watches = Watches()

    def load(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """When a page opens: fill the lists, open the run that its address names, offer what was cut off."""
        linked = caller.http.query_params.get(LINK) if caller.http else None
        return {
            **self._fields.list_all(caller),
            **self._offer(caller),
            **(self._open(caller, linked) if linked else {}),
        }

    def open(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """Show an earlier run and fill the form with it; an id that is none leaves the form as it is."""
        return self._open(caller, str(values["earlier"])) if values["earlier"] else {}

    def go_back(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """Show the run that the address of the page names after Back or Forward."""
        return self._open(caller, said.id) if said.id else {}

    def run(self, caller: Caller, page: SweepPage, said: Said) -> Shown:
        """Run the sweep of the form."""

        def start() -> Going:
            spec = make_form_spec(self._backends, page, partial(self._fields.choose_lora, caller.organization))
            return self._under_way.start(spec, organization=caller.organization)

        yield from self.go(caller, "Getting ready …", start)

    def resume(self, caller: Caller, page: RunOnPage, said: Said) -> Shown:
        """Render the cells of the run on the page that have no image, the failed ones again."""
        yield from self.go(caller, "Going on …", lambda: self._under_way.resume(self.find_own(caller, page.run_id).id))

    def resume_cut_off(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Shown:
        """Go on with every sweep that was cut off, the oldest first, and show the newest."""
        cut_off = self._under_way.list_cut_off(caller.organization)
        if not cut_off:
            yield self._offer(caller)
            return

        def start() -> Going:
            *_, newest = [self._under_way.resume(run.id) for run in reversed(cut_off)]
            return newest

        yield from self.go(caller, "Going on …", start)
        yield self._offer(caller)

    def leave_cut_off(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """Offer them no more; they are among the earlier sweeps."""
        self._under_way.leave(caller.organization)
        return self._offer(caller)

    def stop(self, caller: Caller, page: RunOnPage, said: Said) -> Changes:
        """Stop the sweep on the page; what follows it shows that, on every page."""
        self._under_way.stop(self.find_own(caller, page.run_id).id)
        return {}

    def forget(self, session: str) -> None:
        """Look no more for a page that was closed; its sweep goes on."""
        self._watches.forget(session)

    def rate(self, caller: Caller, page: RunOnPage, said: Said) -> Changes:
        """Keep the rating of a cell (0 takes it away; its note stays), and say what now follows."""
        position, rating = read_whole("Cell", said.id), read_whole("Rating", said.text)
        run = self.find_own(caller, page.run_id)
        record = next((record for record in self._store.cells(run.id) if record.cell.position == position), None)
        self._store.rate(run.id, position, rating or None, record.note if record else "")
        return self.tell_again(caller, run.id)

    def tell_again(self, caller: Caller, run_id: str) -> Changes:
        """Say what follows now that people judged: the answer, and its marks in the grid, at the end of a run."""
        if self._under_way.is_rendering(run_id):
            return {}
        run, records = self._store.look(run_id)
        own = run.organization == caller.organization
        shown = draw_ended(run, records, *tell_cells(self._store, records), own=own)
        return {"grid": shown["grid"], "verdict": shown["verdict"]}

    def download(self, caller: Caller, page: RunOnPage, said: Said) -> Changes:
        """Make the labelled grid of the run on the page a file to download."""
        return self._keep(page, grid_bytes, "png")

    def download_animation(self, caller: Caller, page: RunOnPage, said: Said) -> Changes:
        """Make the animation over the strengths of the run on the page a file to download."""
        return self._keep(page, strengths_webp, "webp")

    def _keep(self, page: RunOnPage, make: Callable[[SweepSpec, Sequence[CellRecord]], bytes], ending: str) -> Changes:
        if page.run_id is None:
            return {}
        run, records = self._store.look(page.run_id)
        return {"download_file": keep_file(make(run.spec, records), f"{run.id}.{ending}")}

    def find_own(self, caller: Caller, run_id: str | None) -> Run:
        """Return the run on the page. Others may look at it, but not change it.

        Raises:
            InvalidInput: There is none.
            NotAuthorized: It is somebody else's.
        """
        if run_id is None:
            raise InvalidInput("There is no sweep yet. Press Run sweep first.")
        run = self._store.run(run_id)
        if run.organization != caller.organization:
            raise NotAuthorized("This sweep is somebody else's. Press Run sweep to make one of your own.")
        return run

    def go(self, caller: Caller, words: str, start: Callable[[], Going]) -> Shown:
        """Start a sweep and have the page look at it; `follow` shows it. One that cannot start changes nothing else."""
        yield {
            "status": part("message", text=words, running=True),
            "run": gr.update(interactive=False, value="Running …"),
        }
        going = start()
        self._watches.begin(caller.session, going)
        yield {"run_id": going.run_id, "chosen": None}

    async def follow(self, caller: Caller, values: Mapping[str, Any], said: Said) -> AsyncGenerator[Changes]:
        """Show the sweep that the page looks at to its end, or until the page looks at another one."""
        watch = self._watches.take(caller.session)
        if watch is None:
            return
        run = LiveRun(self._store, own=watch.going.organization == caller.organization)
        async with aclosing(watch.moments()) as moments:
            async for moment in moments:
                # Reading and drawing take a while, which other pages must not wait for.
                yield await asyncio.to_thread(run.draw, moment)

    def _open(self, caller: Caller, run_id: str) -> Changes:
        try:
            run, records = self._store.look(run_id)
        except NotFound:
            # Not the error's own words: those tell whoever sits at the machine which command lists the runs.
            text = f"There is no sweep {quote(run_id)} here. The link may be cut short, or the sweep was deleted."
            return {"status": part("error", text=text)}
        going = self._under_way.find(run_id)
        self._watches.begin(caller.session, going)
        form, missing = self._find_form(caller, run.spec)
        own, moment = run.organization == caller.organization, going.look() if going else None
        shown = (
            {**LiveRun(self._store, own=own).draw(moment)}
            if moment
            else {**draw_ended(run, records, *tell_cells(self._store, records), own=own)}
        )
        if missing:
            text = f"Its LoRA “{missing}” is not among yours: choose one to run it yourself."
            shown["status"] += part("hint", text=text, kind="warn")
        return {**self._fields.fill(caller, form), "run_id": run.id, "chosen": None, **shown}

    def _find_form(self, caller: Caller, spec: SweepSpec) -> tuple[SweepForm, str]:
        """The form of a run with the LoRAs as this visitor calls them, and the name of its first if they lack it."""
        if spec.training:
            known = spec.training.name in (run.name for run in self._fields.list_training_runs(caller))
            return fill_form(spec).model_copy(update={} if known else {"lora": None}), "" if known else name_lora(spec)
        mine = {ref.sha256: ref.name for ref in reversed(self._fields.list_loras(caller))}
        first, *others = (*spec.loras, None) if not spec.loras else spec.loras
        named = {
            "lora": mine.get(first.sha256) if first else None,
            "more_loras": tuple(mine[lora.sha256] for lora in others if lora and lora.sha256 in mine),
        }
        return fill_form(spec).model_copy(update=named), name_lora(spec) if first and not named["lora"] else ""

    def _offer(self, caller: Caller) -> Changes:
        """Offer to go on with the sweeps that were under way when the server ended."""
        count = len(self._under_way.list_cut_off(caller.organization))
        sweeps = count_of(count, "sweep")
        text = f"{sweeps} {'was' if count == 1 else 'were'} cut off when the app ended. What was done is kept."
        return {
            "cut_off": gr.update(visible=count > 0),
            "cut_off_hint": part("hint", text=text if count else ""),
            "resume_cut_off": gr.update(value=f"Continue {sweeps}"),
        }
