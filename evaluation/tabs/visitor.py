"""Learn whose browser shows the page, and say how long their work is kept there.

The browser holds a random token of its own; nobody signs in. Where everybody works together there is none.
"""

from typing import Final

import gradio as gr

from lora_runtime.registry.visitors import Visitors
from lora_runtime.settings import Settings

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


def draw_keeping(settings: Settings) -> str:
    """Return the line that says whose a visitor's work is and how long it is kept; none on one's own machine."""
    if settings.visitors == "together":
        return ""
    kept = f"kept for {_hours(settings.keep_hours)}, then deleted" if settings.keep_hours else "kept"
    return f'<p class="keeping">What you make here is yours alone: no other visitor sees it. It is {kept}.</p>'


def _hours(hours: float) -> str:
    days = hours / 24
    if days >= 2 and days == int(days):
        return f"{days:g} days"
    return "one hour" if hours == 1 else f"{hours:g} hours"
