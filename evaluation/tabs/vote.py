"""The Vote tab: two pictures of one scene, and nobody knows which is which. Layout and wiring.

`vote_run.py` acts, `vote_form.py` says what is shown, `vote.js` shows a pair and hears the keys; the stage is drawn
once and filled in by it, so that neither the focus nor a picture is lost between two votes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gradio as gr

from evaluation.report.draw import draw
from evaluation.store.store import Store
from evaluation.tabs.page import Caller, Changes, Handler, Page, Parts, Said, read_script
from evaluation.tabs.sweep import SweepTab
from evaluation.tabs.vote_form import VoteForm
from evaluation.tabs.vote_run import EMPTY, VoteRun

VOTE_TAB: Final = "vote"
VOTE_SHEET: Final = Path(__file__).parent / "web" / "vote.css"

_LANE: Final = "vote"
"""Votes are kept in the order in which they were given."""

_DRAWS: Final = ("run", "ballot", "opened", "voted", "stage", "result", "problem")


@dataclass(frozen=True, kw_only=True)
class VoteTab:
    """The tab's parts and handlers, for the events of other tabs that lead here."""

    parts: Parts
    run: VoteRun


def build_vote_tab(page: Page, store: Store, tabs: gr.Tabs, tab: gr.Tab) -> VoteTab:
    """Lay the tab out inside the current `gr.Blocks` and wire its events."""
    parts = Parts(page, problem="problem")
    parts["tabs"] = tabs
    with gr.Column(elem_id="vote"):
        with gr.Row(elem_classes="vote-head"):
            VoteForm.lay_out(parts, "run", scale=3, min_width=220)
            VoteForm.lay_out(parts, "ballot", scale=3, min_width=220, visible=False)
            VoteForm.lay_out(parts, "name", scale=1, min_width=150)
        VoteForm.lay_out(parts, "token")
        parts.html("problem")
        parts.live("stage", dict(EMPTY), scripts=("vote.js",), html_template=draw("vote.html"), elem_id="vote-stage")
        parts.live("result", elem_id="vote-result")
    parts["opened"], parts["voted"] = gr.State((None, None)), gr.State(None)
    run = VoteRun(store=store)

    def on(trigger: object, handler: Handler, name: str, *draws: str) -> None:
        parts.on(trigger, handler, reads=VoteForm, draws=draws or _DRAWS, lane=_LANE, api_name=name)

    on(tab.select, run.refresh, "vote_refresh")
    on([parts.run.input, parts.ballot.input], run.choose, "vote_choose")
    on([parts.stage.click, parts.result.click], run.act, "vote", "voted", "stage", "result", "problem")
    return VoteTab(parts=parts, run=run)


def wire_vote(tab: VoteTab, sweep: SweepTab, sweep_tab: gr.Tab, entered: gr.events.Dependency) -> None:
    """Come here from a sweep and take the answer back to it; come from a link, once it is known whose the votes are."""
    parts, run = tab.parts, tab.run
    parts["sweep"] = sweep.parts.run_id
    parts["grid"], parts["verdict"] = sweep.parts.grid, sweep.parts.verdict

    def go(caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        form = VoteForm.read({**values, "run": values["sweep"]})
        return {"tabs": gr.update(selected=VOTE_TAB), **run.open(caller, form, said)}

    def load(caller: Caller, form: VoteForm, said: Said) -> Changes:
        found = run.load(caller, form, said)
        return {"tabs": gr.update(selected=VOTE_TAB), **found} if found else {}

    def answer(caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """Say again on the Sweep tab what follows, when the sweep there has been voted on."""
        if not values["voted"] or values["voted"] != values["sweep"]:
            return {}
        return {"voted": None, **sweep.runs.tell_again(caller, values["voted"])}

    draws = ("tabs", *_DRAWS)
    parts.on(sweep.parts.vote.click, go, reads=("name", "token", "sweep"), draws=draws, lane=_LANE, api_name="vote_go")
    told = ("voted", "grid", "verdict")
    parts.on(sweep_tab.select, answer, reads=("voted", "sweep"), draws=told, api_name="vote_answer")
    known = entered.then(None, None, parts.token, js=read_script("visitor.js"), api_visibility="private")
    parts.on(known.then, load, reads=VoteForm, draws=draws, api_name="vote_load")
