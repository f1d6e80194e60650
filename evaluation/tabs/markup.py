"""What is left of the tabs' own HTML until they draw from templates: words by their old names."""

from evaluation.report.draw import part
from evaluation.tabs.page import draw_error

__all__ = ["draw_error", "draw_hint", "draw_message"]


def draw_hint(text: str, *, kind: str = "") -> str:
    """Return a quiet line under a field; `kind` is "", "warn" or "good"."""
    return part("hint", text=text, kind=kind)


def draw_message(text: str, *, running: bool = False) -> str:
    """Return a status line without numbers."""
    return part("message", text=text, running=running)
