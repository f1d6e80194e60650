"""Assemble the tabs and the HTTP API into one Gradio app and launch it. `HOST` and `PORT` say where; Spaces runs this.

torch is not imported before the page is up: a thread loads the model behind it, for the first sweep.
"""

import contextlib
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from evaluation.tabs import quick_gradio  # noqa: F401 - first: it makes every later import of Gradio quick

# isort: split
import gradio as gr

from evaluation.grid import name_backends
from evaluation.store.clean import Cleaning
from evaluation.store.store import Store
from evaluation.tabs.comparison import COMPARISON_SHEET, COMPARISON_TAB, build_comparison_tab
from evaluation.tabs.finetunes import FINETUNES_TAB, build_finetunes_tab
from evaluation.tabs.finetunes import STYLE_SHEET as FINETUNES_SHEET
from evaluation.tabs.page import Page
from evaluation.tabs.playground import PLAYGROUND_SHEET, PLAYGROUND_TAB, build_playground_tab, wire_playground
from evaluation.tabs.program_finetunes import answer_in_json, build_finetunes_api, make_caller
from evaluation.tabs.programs import Studio, build_api
from evaluation.tabs.style import STYLE_SHEET, TRAINING_SHEET, draw_masthead, make_theme
from evaluation.tabs.sweep import SWEEP_TAB, build_sweep_tab, lay_out_viewer, wire_load
from evaluation.tabs.take_away import wire_take_away
from evaluation.tabs.vote import VOTE_SHEET, VOTE_TAB, build_vote_tab, wire_vote
from evaluation.under_way import UnderWay
from lora_runtime.backends.base import Backend
from lora_runtime.backends.open import open_configured
from lora_runtime.errors import KleinLabError
from lora_runtime.registry.local import open_blobs
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.training_runs import TrainingRuns
from lora_runtime.registry.visitors import Visitors
from lora_runtime.server.api import build_routes, mount
from lora_runtime.server.door import guard
from lora_runtime.server.service import Service
from lora_runtime.settings import Settings, settings
from lora_runtime.startup import fetch_judge, fetch_weights, show_pipeline_log, warm_up_later
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database

CACHE_AGE_S: Final = (3600, 86400)
"""Look every hour, delete downloads and uploads of more than a day. The images themselves are kept elsewhere."""

GOODBYE_S: Final = 1
"""How long Ctrl-C waits for open pages: each holds a connection, and Gradio itself would wait five seconds for it."""


def open_sweeps(backends: Mapping[str, Backend], store: Store, chosen: Settings) -> UnderWay:
    """Return the sweeps under way: none yet. Whoever waits for a GPU that is lent waits at Hugging Face, not here."""
    return UnderWay(backends, store, at_once=None if chosen.on_zero_gpu else chosen.sweeps_at_once)


def build_app(
    backend: Backend | Mapping[str, Backend], store: Store, service: Service, under_way: UnderWay
) -> gr.Blocks:
    """Return the app on a backend, or several by name, with the log of what was rendered and the registry behind it."""
    backends = name_backends(backend)
    visitors, shelf = Visitors(apart=service.settings.visitors == "apart"), Shelf(service.finetunes)
    training_runs = TrainingRuns(store.database, shelf, service.settings.home / "loras")
    with Page(
        visitors,
        service.settings,
        title="Klein LoRA Lab",
        analytics_enabled=False,
        delete_cache=CACHE_AGE_S,
        fill_width=True,
    ) as page:
        gr.HTML(draw_masthead(service.settings), apply_default_css=False)
        with gr.Tabs(selected=SWEEP_TAB, overflow_behavior="wrap") as tabs:
            with gr.Tab("Sweep", id=SWEEP_TAB) as sweep_tab:
                sweep = build_sweep_tab(page, backends, store, shelf, training_runs, under_way, sweep_tab)
            with gr.Tab("Playground", id=PLAYGROUND_TAB) as playground_tab:
                playground = build_playground_tab(page, service, backends, store, shelf, sweep, tabs)
            with gr.Tab("Vote", id=VOTE_TAB) as vote_tab:
                vote = build_vote_tab(page, store, tabs, vote_tab)
            with gr.Tab("Comparison", id=COMPARISON_TAB) as comparison:
                build_comparison_tab(page, store, sweep, playground, tabs, comparison)
            with gr.Tab("Finetunes", id=FINETUNES_TAB) as finetunes:
                build_finetunes_tab(page, service, training_runs, sweep, playground, tabs, finetunes)
        wire_take_away(sweep.parts, store, service, training_runs, playground, tabs)
        lay_out_viewer()
        caller = make_caller(visitors, service.accounts)
        build_api(
            Studio(
                backends=backends, store=store, shelf=shelf, training_runs=training_runs, under_way=under_way,
                blobs=Blobs(service.settings.home / "blobs"), caller=caller,
            )
        )  # fmt: skip
        build_finetunes_api(service, shelf, caller)
        entered = page.wire_visits()
        wire_load(sweep, entered)
        wire_playground(playground, entered, playground_tab)
        wire_vote(vote, sweep, sweep_tab, entered)
    return page


def find_free_port() -> int:
    """Return a port that nobody listens at now; Gradio's own search leaves a socket open for each that is taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch_options(chosen: Settings) -> dict[str, Any]:
    """Return how the app is served: only images and Gradio's own cache can be read from outside."""
    return {
        "server_name": chosen.host,
        "server_port": chosen.port or find_free_port(),
        "theme": make_theme(),
        "css_paths": [STYLE_SHEET, TRAINING_SHEET, PLAYGROUND_SHEET, COMPARISON_SHEET, FINETUNES_SHEET, VOTE_SHEET],
        "footer_links": ["api"],
        "mcp_server": True,
        "allowed_paths": [str((chosen.home / "blobs").resolve())],
        "max_file_size": chosen.lora_max_bytes,
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "show_error": True,
        "inbrowser": chosen.opens_browser,
        "quiet": True,
    }


def launch(page: gr.Blocks, service: Service, **options: Any) -> str:
    """Serve the page, with the HTTP API and the MCP tools beside it; return its address. `options` go first."""
    web = {"routes": [mount(build_routes(service))], "lifespan": guard(service.settings, service.accounts.has_keys)}
    _, url, _ = page.launch(**{**launch_options(service.settings), **options}, app_kwargs=web, prevent_thread_lock=True)
    answer_in_json(page)
    return str(url)


def wait_for_goodbye(page: gr.Blocks) -> None:
    """Wait for Ctrl-C, then take no more requests."""
    with contextlib.suppress(KeyboardInterrupt):
        while page.is_running:
            time.sleep(0.1)
    page.server.should_exit = True
    page.server.thread.join(GOODBYE_S)


def main() -> None:
    """Serve until Ctrl-C."""
    chosen = settings()
    show_pipeline_log()
    fetch_weights(chosen)
    fetch_judge(chosen)
    backends = open_configured()
    backend, database = backends["local"], Database(chosen.sqlalchemy_url())
    store = Store(database, Blobs(chosen.home / "blobs"))
    service = Service(backend=backend, database=database, blobs=open_blobs(chosen), settings=chosen)
    cleaning = Cleaning(store, service, chosen)
    under_way = open_sweeps(backends, store, chosen)
    page = build_app(backends, store, service, under_way)
    try:
        url = launch(page, service)
        service.start()
        cleaning.start()
        print(f"\n  Klein LoRA Lab is at {url}   (Ctrl-C ends it; nothing is lost)\n", flush=True)  # noqa: T201
        warm_up_later(backend, chosen)
        wait_for_goodbye(page)
    except KeyboardInterrupt:
        page.close(verbose=False)
    finally:
        under_way.close()
        cleaning.close()
        service.close()
        for opened in backends.values():
            opened.close()
        store.close()


if __name__ == "__main__":
    try:
        main()
    except KleinLabError as problem:
        sys.exit(f"Error: {problem}")
