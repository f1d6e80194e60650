"""The Sweep tab's handlers as plain calls: run, fail, stop, follow, extend, rate, look, presets, links."""

import asyncio
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import gradio as gr
import pytest

from evaluation.store.store import Store
from evaluation.sweep import Planned, run_sweep
from evaluation.tabs.fields import Box
from evaluation.tabs.page import Caller, Changes, Said
from evaluation.tabs.sweep_extend import SweepExtend, find_between
from evaluation.tabs.sweep_fields import FormAndPreset, PresetFields, SweepFields
from evaluation.tabs.sweep_form import RunOnPage, SweepForm, SweepPage
from evaluation.tabs.sweep_run import SweepRuns
from evaluation.under_way import UnderWay
from lora_runtime.errors import InvalidInput, NotAuthorized, RenderFailed
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.training_runs import TrainingRuns
from lora_runtime.storage.blobs import Blobs
from lora_runtime.values import RenderRequest
from tests.drawing_backend import DrawingBackend, make_drawing_spec

CALLER, OTHER = Caller(session="one", organization="local"), Caller(session="two", organization="other")
SAID = Said()
FORM = SweepPage(lora="style", prompt="a red fox", strengths="0, 0.5, 1", seed="7")


@dataclass
class Tab:
    backend: DrawingBackend
    store: Store
    fields: SweepFields
    runs: SweepRuns
    extend: SweepExtend
    under_way: UnderWay

    def run(self, page: SweepPage = FORM, caller: Caller = CALLER) -> dict[str, Any]:
        """Everything the page shows when a run has ended."""
        return merge(self.show(self.runs.run(caller, page, SAID), caller))

    def show(self, started: Iterable[Changes], caller: Caller = CALLER) -> list[dict[str, Any]]:
        """Each change of the page, from the click to the end of its run."""
        return [*map(dict, started), *self.follow(caller)]

    def follow(self, caller: Caller = CALLER) -> list[dict[str, Any]]:
        """What the page is sent of the run that it looks at."""

        async def collect() -> list[dict[str, Any]]:
            return [dict(changes) async for changes in self.runs.follow(caller, {}, SAID)]

        return asyncio.run(collect())


@pytest.fixture
def tab(store: Store, home: Path) -> Iterator[Tab]:
    backend = DrawingBackend()
    shelf = Shelf(Finetunes(store.database, Blobs(home / "api"), max_bytes=10**7))
    fields = SweepFields({"drawing": backend}, store, shelf, TrainingRuns(store.database, shelf, home / "loras"))
    under_way = UnderWay({"drawing": backend}, store)
    runs = SweepRuns({"drawing": backend}, store, shelf, fields, under_way)
    extend = SweepExtend(runs, fields, store, under_way)
    yield Tab(backend=backend, store=store, fields=fields, runs=runs, extend=extend, under_way=under_way)
    under_way.close()


@contextmanager
def next_start(tab: Tab) -> Iterator[SweepRuns]:
    """The handlers of the same home after the next start."""
    backends = {"drawing": tab.backend}
    under_way = UnderWay(backends, tab.store)
    yield SweepRuns(backends, tab.store, tab.runs._shelf, tab.fields, under_way)
    under_way.close()


def merge(shown: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    page: dict[str, Any] = {}
    for changes in shown:
        for name, value in changes.items():
            both = isinstance(value, dict) and isinstance(page.get(name), dict)
            page[name] = {**page[name], **value} if both else value
    return page


def usable(page: Mapping[str, Any]) -> dict[str, bool]:
    return {
        name: page[name]["interactive"] for name in ("run", "stop", "resume", "download", "animation", "add", "refine")
    }


def test_a_run_ends_with_its_pictures_its_verdict_and_its_buttons(tab: Tab) -> None:
    shown = tab.show(tab.runs.run(CALLER, FORM, SAID))
    values = [changes["grid"] for changes in shown if "grid" in changes]
    assert values[0]["busy"]
    assert not values[-1]["busy"]
    assert all("cell done" in html for html in values[-1]["cells"].values())
    page = merge(iter(shown))
    assert "Trustworthy" in page["verdict"]
    assert "3 of 3 · done in" in page["status"]
    noted = tab.extend.note(CALLER, FORM.model_copy(update={"run_id": page["run_id"], "chosen": (0, 2)}), SAID)
    assert usable(noted) == {
        "run": True, "stop": False, "resume": False, "download": True, "animation": True, "add": False, "refine": True,
    }  # fmt: skip
    assert noted["refine"]["value"] == "Refine 0.00 to 1.00: 2 images"
    assert noted["earlier"]["choices"][0][1] == page["run_id"]


def test_an_animation_is_offered_from_two_strengths(tab: Tab) -> None:
    page = tab.run(FORM.model_copy(update={"strengths": "0"}))
    assert [page[name]["interactive"] for name in ("download", "animation")] == [True, False]


def test_a_sweep_that_cannot_start_leaves_what_is_there_usable(tab: Tab) -> None:
    run_id = tab.run()["run_id"]
    wrong = FORM.model_copy(update={"strengths": "0, abc", "run_id": run_id, "chosen": (0, 2)})
    started = tab.runs.run(CALLER, wrong, SAID)
    assert set(next(started)) == {"status", "run"}, "what can be done with the grid that is there stays"
    with pytest.raises(InvalidInput, match="abc"):
        next(started)
    assert not tab.follow()
    noted = tab.extend.note(CALLER, wrong, SAID)
    assert usable(noted)["download"]
    assert usable(noted)["refine"]
    assert "grid" not in noted
    assert usable(tab.extend.note(CALLER, FORM, SAID))["run"], "nothing was there"


def test_cells_that_fail_can_be_tried_again(tab: Tab) -> None:
    tab.backend.fails = lambda request: RenderFailed("It broke.") if request.strength else None
    page = tab.run()
    assert (page["resume"]["value"], page["resume"]["interactive"]) == ("Retry 2 failed", True)
    assert "2 failed" in page["status"]
    tab.backend.fails = lambda request: None
    on_page = RunOnPage(run_id=page["run_id"])
    first, *_ = [changes["grid"] for changes in tab.show(tab.runs.resume(CALLER, on_page, SAID)) if "grid" in changes]
    assert sum("cell waiting" in html for html in first["cells"].values()) == 2, "what failed waits again"
    assert tab.store.run(page["run_id"]).status == "done"


class Gate:
    """Holds the backend at a strength until it is opened."""

    def __init__(self, tab: Tab, at: str) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.at = Decimal(at)
        tab.backend.fails = self

    def __call__(self, request: RenderRequest) -> None:
        if request.strength == self.at:
            self.reached.set()
            assert self.open.wait(60)


EIGHT = FORM.model_copy(update={"strengths": "0-1.4 [8]"})


def test_a_sweep_goes_on_when_its_page_is_closed_and_another_page_stops_it(tab: Tab) -> None:
    gate = Gate(tab, "0.4")
    run_id = merge(tab.runs.run(CALLER, EIGHT, SAID))["run_id"]

    async def close_in_the_middle() -> list[Changes]:
        shown = []
        async for changes in tab.runs.follow(CALLER, {}, SAID):
            shown.append(changes)
            await asyncio.to_thread(gate.reached.wait, 60)
            tab.runs.forget(CALLER.session)
        return shown

    assert len(asyncio.run(close_in_the_middle())) == 1, "it ends with its page"
    assert tab.under_way.is_rendering(run_id)
    visitor = replace(CALLER, session="a page of the same organization")
    opened = tab.runs.open(visitor, {"earlier": run_id}, SAID)
    assert opened["grid"]["busy"]
    assert usable(opened) == {
        "run": False, "stop": True, "resume": False, "download": False, "animation": False, "add": False,
        "refine": False,
    }  # fmt: skip
    tab.runs.stop(visitor, RunOnPage(run_id=run_id), SAID)
    gate.open.set()
    page = merge(tab.follow(visitor))
    assert (page["resume"]["value"], page["resume"]["interactive"]) == ("Continue: 5 left", True)
    assert "3 of 8 · stopped, 5 left" in page["status"]
    before = len(tab.backend.rendered)
    merge(tab.show(tab.runs.resume(CALLER, RunOnPage(run_id=run_id), SAID)))
    assert tab.store.run(run_id).status == "done"
    again = tab.backend.rendered[before:]
    assert sorted(str(request.strength) for request in again) == ["0.6", "0.8", "1", "1.2", "1.4"]


def test_who_has_the_link_sees_a_sweep_fill_and_changes_nothing(tab: Tab) -> None:
    gate = Gate(tab, "0.4")
    run_id = merge(tab.runs.run(CALLER, EIGHT, SAID))["run_id"]
    assert gate.reached.wait(60)
    opened = tab.runs.open(OTHER, {"earlier": run_id}, SAID)
    assert "somebody else’s sweep" in opened["status"]
    assert usable(opened) == {
        "run": True, "stop": False, "resume": False, "download": False, "animation": False, "add": False,
        "refine": False,
    }  # fmt: skip
    for act in (tab.runs.stop, lambda *asked: list(tab.runs.resume(*asked))):
        with pytest.raises(NotAuthorized):
            act(OTHER, RunOnPage(run_id=run_id), SAID)
    gate.open.set()
    mine, theirs = merge(tab.follow()), merge(tab.follow(OTHER))
    assert mine["grid"]["cells"].keys() == theirs["grid"]["cells"].keys()
    assert all("cell done" in html for html in theirs["grid"]["cells"].values())
    assert mine["verdict"] == theirs["verdict"]


def test_a_page_shows_nothing_more_of_a_sweep_once_it_shows_another(tab: Tab) -> None:
    done = tab.run()["run_id"]
    gate = Gate(tab, "0.4")
    list(tab.runs.run(CALLER, EIGHT, SAID))

    async def open_in_the_middle() -> list[Changes]:
        shown, opening = [], None
        async for changes in tab.runs.follow(CALLER, {}, SAID):
            shown.append(changes)
            await asyncio.to_thread(gate.reached.wait, 60)
            opening = asyncio.create_task(asyncio.to_thread(tab.runs.go_back, CALLER, {}, Said(id=done)))
            await asyncio.sleep(0)
        assert opening is not None
        page = await opening
        assert (page["run_id"], page["grid"]["busy"]) == (done, False)
        return shown

    shown = asyncio.run(open_in_the_middle())
    assert shown
    assert not tab.follow(), "the run on the page is at its end"
    gate.open.set()
    assert "grid" not in tab.extend.note(CALLER, FORM.model_copy(update={"run_id": done}), SAID)


def test_a_page_offers_to_go_on_with_what_was_cut_off(tab: Tab) -> None:
    gate = Gate(tab, "0.4")
    older = merge(tab.runs.run(CALLER, EIGHT, SAID))["run_id"]
    newer = merge(tab.runs.run(replace(CALLER, session="two"), EIGHT.model_copy(update={"seed": "8"}), SAID))["run_id"]
    assert gate.reached.wait(60)
    assert not tab.runs.load(CALLER, {}, SAID)["cut_off"]["visible"]
    closing = threading.Thread(target=tab.under_way.close)
    closing.start()
    gate.open.set()
    closing.join(60)
    with next_start(tab) as again:
        offered = again.load(CALLER, {}, SAID)
        assert offered["cut_off"]["visible"]
        assert "2 sweeps were cut off" in offered["cut_off_hint"]
        assert not again.load(OTHER, {}, SAID)["cut_off"]["visible"]
        page = merge(again.resume_cut_off(CALLER, {}, SAID))
        assert (page["run_id"], page["cut_off"]["visible"]) == (newer, False)
        for run_id in (older, newer):
            going = again._under_way.find(run_id)
            assert going is None or [*going.follow()][-1].over
            assert tab.store.run(run_id).status == "done"
        assert "run_id" not in merge(again.resume_cut_off(CALLER, {}, SAID)), "there is nothing"
        assert not again.leave_cut_off(CALLER, {}, SAID)["cut_off"]["visible"]


def test_strengths_are_added_and_refined_and_only_new_ones_rendered(tab: Tab) -> None:
    run_id = tab.run()["run_id"]
    count = len(tab.backend.rendered)
    asked = RunOnPage(run_id=run_id, add_values="0.5, 2", chosen=(0, 1))
    told = tab.extend.describe(CALLER, asked, SAID)
    assert told["add"] == gr.update(value="Add 1 image", interactive=True)
    assert told["refine"]["value"] == "Refine 0.00 to 0.50: 3 images"
    tab.runs.rate(CALLER, asked, Said(act="rate", id="1", value=4))
    page = merge(tab.show(tab.extend.add(CALLER, asked, SAID)))
    assert page["add_values"] == ""
    assert page["run_id"] != run_id
    assert len(tab.backend.rendered) == count + 1
    assert [str(each) for each in tab.store.run(page["run_id"]).spec.strengths] == ["0", "0.5", "1", "2"]
    more = merge(tab.show(tab.extend.refine(CALLER, RunOnPage(run_id=page["run_id"], chosen=(0, 1)), SAID)))
    rated = {str(each.cell.request.strength): each.rating for each in tab.store.cells(more["run_id"])}
    assert rated == {"0": None, "0.125": None, "0.25": None, "0.375": None, "0.5": 4, "1": None, "2": None}


def test_strengths_that_another_run_has_rendered_are_added_all_the_same(tab: Tab) -> None:
    older = tab.run(FORM.model_copy(update={"strengths": "0, 1"}))["run_id"]
    tab.run()
    count = len(tab.backend.rendered)
    asked = RunOnPage(run_id=older, add_values="0.5", chosen=(0, 1))
    told = tab.extend.describe(CALLER, asked, SAID)
    assert told["add"] == gr.update(value="Add 0 new images", interactive=True)
    assert told["refine"]["value"] == "Refine 0.00 to 1.00: 2 images"
    page = merge(tab.show(tab.extend.add(CALLER, asked, SAID)))
    assert [str(each) for each in tab.store.run(page["run_id"]).spec.strengths] == ["0", "0.5", "1"]
    assert len(tab.backend.rendered) == count


@pytest.mark.parametrize(
    ("strengths", "chosen", "between"),
    [
        ("0, 1", (0, 1), "0.25 0.5 0.75"),
        ("0, 0.5, 1", (0, 2), "0.25 0.75"),
        ("0, 0.1, 0.4, 1.5, 2", (0, 4), "0.95"),
        ("0, 0.1, 0.4, 1.5, 2", (1, 2), "0.175 0.25 0.325"),
        ("0-1.2 [7], 0.1, 0.4, 1.5, 2", (5, 9), "1.35 1.75"),
    ],
)
def test_refine_halves_the_wide_gaps_of_a_grid_whatever_was_added(
    tab: Tab, strengths: str, chosen: tuple[int, int], between: str
) -> None:
    records = tab.store.cells(tab.run(FORM.model_copy(update={"strengths": strengths}))["run_id"])
    assert " ".join(str(each) for each in find_between(records, chosen)) == between


def test_four_prompts_and_two_seeds_make_an_answer_sure(tab: Tab) -> None:
    page = RunOnPage(run_id=tab.run()["run_id"])
    told = tab.extend.go_on(CALLER, page, SAID)
    assert told["sure"]["interactive"]
    assert "4 prompts × 2 seeds at 0, 0.5, 1: 24 new pictures" in told["sure_hint"]
    count = len(tab.backend.rendered)
    shown = tab.show(tab.extend.make_sure(CALLER, page, SAID))
    assert not any(changes["sure"]["interactive"] for changes in shown if "sure" in changes), "a run is under way"
    sure = RunOnPage(run_id=merge(iter(shown))["run_id"])
    assert len(tab.store.cells(str(sure.run_id))) == 24
    assert {request.prompt for request in tab.backend.rendered[count:]} == {
        "a red fox on the beach", "a red fox in a forest", "a red fox in the city", "a red fox at night"
    }  # fmt: skip
    assert "0 new pictures" in tab.extend.go_on(CALLER, page, SAID)["sure_hint"], "they are there now"
    told = tab.extend.go_on(CALLER, sure, SAID)
    assert not told["sure"]["interactive"]
    assert "has 4 prompts × 2 seeds already" in told["sure_hint"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"fails": lambda request: RenderFailed("It broke.") if request.strength else None}, "are missing"),
        ({"acts": lambda strength: Decimal(0)}, "cannot be trusted"),
    ],
)
def test_what_cannot_be_made_sure_says_why(tab: Tab, fault: dict[str, Any], said: str) -> None:
    vars(tab.backend).update(fault)
    page = RunOnPage(run_id=tab.run()["run_id"])
    told = tab.extend.go_on(CALLER, page, SAID)
    assert not told["sure"]["interactive"]
    assert said in told["sure_hint"]
    with pytest.raises(InvalidInput, match=said):
        list(tab.extend.make_sure(CALLER, page, SAID))


def test_another_visitor_and_a_page_without_a_run_make_nothing_sure(tab: Tab) -> None:
    page = RunOnPage(run_id=tab.run()["run_id"])
    assert not tab.extend.go_on(OTHER, page, SAID)["sure"]["interactive"]
    assert not tab.extend.go_on(CALLER, RunOnPage(), SAID)["sure"]["interactive"]
    with pytest.raises(NotAuthorized, match="somebody else's"):
        list(tab.extend.make_sure(OTHER, page, SAID))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chosen": None}, "Click two cells of different strengths"),
        ({"chosen": (1, 1)}, "Click two cells of different strengths"),
        ({"add_values": "0.5"}, "Those strengths are in the grid already."),
        ({"add_values": "0.5, x"}, "character 6"),
    ],
)
def test_what_cannot_be_extended_says_why(tab: Tab, changes: dict[str, Any], said: str) -> None:
    page = RunOnPage(run_id=tab.run()["run_id"], chosen=(0, 1)).model_copy(update=changes)
    told = tab.extend.describe(CALLER, page, SAID)
    assert said in told["extend_hint"]
    assert not told["add"]["interactive"]


@pytest.mark.parametrize("value", [["1"], ["a", "b"], None, "0 1", [None, 2]])
def test_a_choice_that_is_none_is_no_choice(tab: Tab, value: object) -> None:
    chosen = tab.extend.choose(CALLER, RunOnPage(run_id=tab.run()["run_id"]), Said(act="choose", value=value))
    assert chosen["chosen"] is None


def test_a_rating_is_kept_and_another_visitor_may_only_look(tab: Tab) -> None:
    run_id = tab.run()["run_id"]
    on_page = RunOnPage(run_id=run_id, chosen=(0, 2))
    tab.store.rate(run_id, 1, 1, "a note")
    told = tab.runs.rate(CALLER, on_page, Said(act="rate", id="1", value=4))
    assert "0.5 4.0 of 5 (1 rating)" in told["verdict"], "the answer says it at once"
    assert "★ 4" in told["grid"]["cells"]["1"]
    added = merge(tab.show(tab.extend.add(CALLER, on_page.model_copy(update={"add_values": "0.25"}), SAID)))
    assert "★ 4" in added["grid"]["cells"]["2"], "a run with more strengths has the ratings of the one before"
    assert (tab.store.cells(run_id)[1].rating, tab.store.cells(run_id)[1].note) == (4, "a note")
    with pytest.raises(NotAuthorized, match="somebody else's"):
        tab.runs.rate(OTHER, on_page, Said(act="rate", id="1", value=5))
    with pytest.raises(NotAuthorized):
        list(tab.runs.resume(OTHER, on_page, SAID))
    told = tab.extend.describe(OTHER, on_page, SAID)
    assert not told["refine"]["interactive"]
    page = tab.runs.open(OTHER, {"earlier": run_id}, SAID)
    assert "somebody else" in page["status"]
    assert 'data-own="false"' in page["grid"]["table"]
    with pytest.raises(InvalidInput, match="no sweep yet"):
        tab.runs.rate(CALLER, RunOnPage(), Said(id="1", value=4))


def test_the_grid_is_told_with_the_answer_after_votes(tab: Tab) -> None:
    run_id = tab.run(FORM.model_copy(update={"further_seeds": "8, 9, 10"}))["run_id"]
    before = tab.runs.tell_again(CALLER, run_id)
    cells = {
        (each.cell.request.seed, str(each.cell.request.strength)): each.cell.identity
        for each in tab.store.cells(run_id)
    }
    for seed in (7, 8, 9, 10):
        for other in ("0", "1"):
            for voter in ("ada", "bob", "eve"):
                tab.store.vote(cells[seed, "0.5"], cells[seed, other], "left", voter=voter, organization="local")
    after = tab.runs.tell_again(CALLER, run_id)
    assert "24 votes" in after["verdict"]
    assert "24 votes" not in before["verdict"]
    assert after["grid"] == tab.runs.open(CALLER, {"earlier": run_id}, SAID)["grid"], (
        "the marks are those of that answer"
    )


def test_a_link_opens_a_run_with_its_form_and_an_old_one_says_so(tab: Tab) -> None:
    asked = FORM.model_copy(update={"further_seeds": "8", "strengths": "0, 1"})
    run_id = tab.run(asked)["run_id"]

    def visit(link: str) -> Mapping[str, Any]:
        http: Any = SimpleNamespace(query_params={"sweep": link})
        return tab.runs.load(replace(CALLER, http=http), {}, SAID)

    page = visit(run_id)
    assert page["run_id"] == run_id
    assert page["strengths"] == "0, 1"
    assert (page["rows"], page["further_prompts"], page["further_seeds"]) == ("none", "", "8")
    assert page["lora"]["value"] == "style"
    assert "no sweep &#39;run-nope&#39;" in visit("run-nope")["status"]
    assert "run_id" not in tab.runs.load(CALLER, {}, SAID)


@pytest.mark.parametrize("strengths", ["0-1.2 [60]", "0, 1-9 [5], 15", "0, 0.5, 1"])
def test_a_link_has_the_strengths_as_a_person_writes_them(tab: Tab, strengths: str) -> None:
    planned = next(iter(run_sweep(make_drawing_spec(strengths=strengths), backend=tab.backend, store=tab.store)))
    assert isinstance(planned, Planned)
    assert tab.runs.open(CALLER, {"earlier": planned.run_id}, SAID)["strengths"] == strengths


def test_a_run_whose_lora_this_visitor_lacks_asks_for_another(tab: Tab) -> None:
    planned = next(iter(run_sweep(make_drawing_spec(), backend=tab.backend, store=tab.store)))
    assert isinstance(planned, Planned)
    page = tab.runs.open(CALLER, {"earlier": planned.run_id}, SAID)
    assert page["lora"]["value"] is None
    assert "choose one to run it yourself" in page["status"]


def test_presets_are_saved_used_deleted_and_brought_back(tab: Tab) -> None:
    form = SweepForm.model_validate({**FORM.model_dump(), "further_prompts": "b\nc", "further_seeds": "8"})
    asked = FormAndPreset(**form.model_dump(), preset_name=" my  own ")
    saved = tab.fields.save_preset(CALLER, asked, SAID)
    assert (saved["preset"]["value"], saved["preset_undone"]) == ("my own", None)
    used = tab.fields.use_preset(CALLER, PresetFields(preset="my own"), SAID)
    assert (used["prompt"], used["further_prompts"], used["further_seeds"]) == ("a red fox", "b\nc", "8")
    again = tab.fields.save_preset(CALLER, asked.model_copy(update={"prompt": "other"}), SAID)
    assert "in place of the one that was there" in again["preset_hint"]
    tab.fields.undo_preset(CALLER, PresetFields(preset_undone=again["preset_undone"]), SAID)
    assert tab.fields.use_preset(CALLER, PresetFields(preset="my own"), SAID)["prompt"] == "a red fox"
    long = FormAndPreset(**form.model_dump(), preset_name="n" * 61)
    with pytest.raises(InvalidInput, match="this name has 61 characters; 60 at most"):
        tab.fields.save_preset(CALLER, long, SAID)
    gone = tab.fields.delete_preset(CALLER, PresetFields(preset="my own"), SAID)
    assert gone["preset"]["choices"] == []
    back = tab.fields.undo_preset(CALLER, PresetFields(preset_undone=gone["preset_undone"]), SAID)
    assert back["preset"]["choices"] == ["my own"]
    lost = FormAndPreset(**form.model_copy(update={"lora": "gone"}).model_dump(), preset_name="lost")
    tab.fields.save_preset(CALLER, lost, SAID)
    used = tab.fields.use_preset(CALLER, PresetFields(preset="lost"), SAID)
    assert "lora" not in used
    assert "has gone" in used["preset_hint"]


def test_the_form_says_what_it_would_render_and_what_its_lora_needs(tab: Tab) -> None:
    told = tab.fields.echo(CALLER, FORM, SAID)
    assert "3 images" in told["echo"]
    assert len(told["grid"]["cells"]) == 3
    assert "grid" not in tab.fields.echo(CALLER, FORM.model_copy(update={"run_id": "run-1"}), SAID)
    assert "abc" in tab.fields.echo(CALLER, FORM.model_copy(update={"strengths": "abc"}), SAID)["echo"]
    subject = FORM.model_copy(update={"lora": "subject"})
    assert "is missing" in tab.fields.describe_lora(CALLER, subject, SAID)["lora_hint"]
    filled = tab.fields.insert_trigger(CALLER, subject, SAID)["prompt"]
    ready = subject.model_copy(update={"prompt": filled})
    assert "has the trigger phrase" in tab.fields.describe_lora(CALLER, ready, SAID)["lora_hint"]
    assert tab.fields.describe_lora(CALLER, FORM, SAID)["insert_trigger"] == gr.update(visible=False)
    further = {"rows": "lora", "more_loras": ("subject",), "further_prompts": "a blue bear\na green owl"}
    both = FORM.model_copy(update=further)
    told = tab.fields.describe_lora(CALLER, both, SAID)
    assert "is missing from 3 of 3 prompts" in told["lora_hint"]
    assert told["insert_trigger"]["visible"]
    put = both.model_copy(update=tab.fields.insert_trigger(CALLER, both, SAID))
    assert "All prompts have the trigger phrase" in tab.fields.describe_lora(CALLER, put, SAID)["lora_hint"]
    assert (
        "trigger"
        not in tab.fields.describe_lora(CALLER, FORM.model_copy(update=further | {"rows": "none"}), SAID)["lora_hint"]
    )
    one = tab.fields.echo(CALLER, FORM.model_copy(update={"strengths": "0"}), SAID)["echo"]
    assert "1 image<" in one
    assert "outside -2 to 2" in tab.fields.echo(CALLER, FORM.model_copy(update={"strengths": "0 5"}), SAID)["echo"]
    weights = tab.fields.choose_weights(CALLER, FORM.model_copy(update={"weights": "pocket-base"}), SAID)
    assert weights["guidance"]["interactive"]


def test_a_new_field_is_one_record() -> None:
    class Longer(SweepForm):
        mood: Annotated[str, Box(gr.Textbox, label="Mood")] = "calm"

    laid: dict[str, Any] = {}
    Longer.lay_out(laid, *Longer.boxes())
    assert set(laid) == {*SweepForm.boxes(), "mood"}
    assert laid["mood"].value == "calm"
    form = Longer.read({"mood": "wild", "lora": None})
    assert Longer.load(form.dump()).put()["mood"] == "wild"
