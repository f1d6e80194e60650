"""Assemble the tabs and the HTTP API into one Gradio app and launch it. `HOST` and `PORT` say where; Spaces runs this.

torch is not imported before the page is up: a thread loads the pocket klein behind it, for the first sweep.
"""

import contextlib
import threading
from collections.abc import Mapping
from typing import Any, Final

import gradio as gr

from evaluation.grid import make_spec, name_backends, plan
from evaluation.store import Store
from evaluation.tabs.api import build_api
from evaluation.tabs.comparison import COMPARISON_TAB, SWEEP_TAB, build_comparison_tab
from evaluation.tabs.style import MASTHEAD, STYLE_SHEET, make_theme
from evaluation.tabs.sweep import build_sweep_tab, wire_page
from lora_runtime.backends.base import Backend
from lora_runtime.backends.choose import open_configured
from lora_runtime.blobs import Blobs
from lora_runtime.database import Database
from lora_runtime.errors import KleinLabError
from lora_runtime.lora.library import list_loras
from lora_runtime.server.api import build_routes, mount
from lora_runtime.server.run import open_blobs
from lora_runtime.server.service import Service
from lora_runtime.settings import Settings, settings
from lora_runtime.shelf import Shelf
from lora_runtime.visitors import Visitors

CACHE_AGE_S: Final = (3600, 86400)
"""Look every hour, delete downloads and uploads of more than a day. The images themselves are kept elsewhere."""

WARM_UP_AFTER_S: Final = 3.0

READ_TOKEN: Final = """() => {
  const bytes = crypto.getRandomValues(new Uint8Array(24));
  const make = () => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  try {
    const token = localStorage.getItem("klein-lora-lab-visitor") ?? make();
    localStorage.setItem("klein-lora-lab-visitor", token);
    return token;
  } catch {
    return make();  // storage is blocked: this page is on its own
  }
}"""
"""The browser's own random token, made at its first visit."""


def build_app(backend: Backend | Mapping[str, Backend], store: Store, service: Service) -> gr.Blocks:
    """Return the app on a backend, or several by name, with the log of what was rendered and the registry behind it."""
    backends = name_backends(backend)
    visitors, shelf = Visitors(apart=service.settings.visitors == "apart"), Shelf(service.finetunes)
    with gr.Blocks(title="Klein LoRA Lab", analytics_enabled=False, delete_cache=CACHE_AGE_S, fill_width=True) as page:
        gr.HTML(MASTHEAD, apply_default_css=False)
        with gr.Tabs(selected=SWEEP_TAB) as tabs:
            with gr.Tab("Sweep", id=SWEEP_TAB) as sweep_tab:
                sweep = build_sweep_tab(backends, store, shelf, visitors)
            with gr.Tab("Comparison", id=COMPARISON_TAB) as comparison:
                build_comparison_tab(store, visitors, sweep, tabs, comparison)
        build_api(backends, store, shelf, visitors)
        entered = wire_visitors(visitors, page)
        wire_page(sweep, page, entered, sweep_tab)
    return page


def wire_visitors(visitors: Visitors, page: gr.Blocks) -> gr.events.Dependency:
    """Learn whose browser shows the page, before anything else is asked, and forget it when the page is closed."""
    token = gr.Textbox(visible=False)

    def enter(value: str, request: gr.Request) -> None:
        visitors.enter(request.session_hash, value or "")

    def leave(request: gr.Request) -> None:
        visitors.leave(request.session_hash)

    page.unload(leave)
    js = READ_TOKEN if visitors.apart else None
    return page.load(enter, token, None, js=js, api_name="enter", api_visibility="private", show_progress="hidden")


def launch_options(chosen: Settings) -> dict[str, Any]:
    """Return how the app is served: only images and Gradio's own cache can be read from outside."""
    return {
        "server_name": chosen.host,
        "server_port": chosen.port or None,
        "theme": make_theme(),
        "css_paths": [STYLE_SHEET],
        "footer_links": ["api"],
        "allowed_paths": [str((chosen.home / "blobs").resolve())],
        "max_file_size": "2gb",
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "show_error": True,
        "inbrowser": chosen.opens_browser,
        "quiet": True,
    }


def warm_up(backend: Backend) -> None:
    """Render one small base image and drop it, so that the model is in memory. What fails here, a sweep will say."""
    with contextlib.suppress(KleinLabError):
        spec = make_spec(
            backend, loras=list_loras()[:1], prompts=["a cat"], strengths="0", seeds=[0], width=64, height=64
        )
        for _ in backend.render([cell.request for cell in plan(spec)]):
            pass


def main() -> None:
    """Serve until Ctrl-C."""
    chosen = settings()
    backends = open_configured()
    backend, database = backends["local"], Database(chosen.sqlalchemy_url())
    store = Store(database, Blobs(chosen.home / "blobs"))
    service = Service(backend=backend, database=database, blobs=open_blobs(chosen), settings=chosen)
    page = build_app(backends, store, service)
    try:
        api = {"routes": [mount(build_routes(service))]}
        _, url, _ = page.launch(**launch_options(chosen), app_kwargs=api, prevent_thread_lock=True)
        service.start()
        print(f"\n  Klein LoRA Lab is at {url}   (Ctrl-C ends it; nothing is lost)\n", flush=True)  # noqa: T201
        # Importing torch keeps a small machine busy; the first page comes first.
        later = threading.Timer(WARM_UP_AFTER_S, warm_up, (backend,))
        later.daemon = True
        later.start()
        page.block_thread()
    except KeyboardInterrupt:
        page.close(verbose=False)
    finally:
        service.close()
        for opened in backends.values():
            opened.close()
        store.close()


if __name__ == "__main__":
    main()
