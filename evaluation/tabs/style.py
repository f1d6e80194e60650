"""The look of the app: a Gradio theme on system fonts (nothing is fetched from elsewhere) and one style sheet."""

from pathlib import Path
from typing import Final

import gradio as gr

from evaluation.report.draw import FOLDERS, draw
from lora_runtime.settings import Settings

STYLE_SHEET: Final = Path(__file__).parent / "web" / "style.css"
TRAINING_SHEET: Final = FOLDERS[0] / "training.css"
"""Of the report too."""

_SANS: Final = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO: Final = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_BLUE: Final = gr.themes.Color(
    c50="#f0f6fc", c100="#e3eef8", c200="#c3dcf2", c300="#93c1e8", c400="#5b9fd8", c500="#2f7fc0", c600="#1461a0",
    c700="#114f83", c800="#10426c", c900="#12385a", c950="#0c243b",
)  # fmt: skip


def draw_masthead(settings: Settings) -> str:
    """Return the head of the page, with how long a visitor's work is kept where visitors are kept apart."""
    kept = f"kept for {_hours(settings.keep_hours)}, then deleted" if settings.keep_hours else "kept"
    return draw("masthead.html", kept="" if settings.visitors == "together" else kept)


def _hours(hours: float) -> str:
    days = hours / 24
    if days >= 2 and days == int(days):
        return f"{days:g} days"
    return "one hour" if hours == 1 else f"{hours:g} hours"


def make_theme() -> gr.themes.Base:
    """Return the theme: paper, ink and one blue, light and dark."""
    return gr.themes.Base(
        primary_hue=_BLUE,
        neutral_hue="stone",
        font=_SANS,
        font_mono=_MONO,
        radius_size="md",
    ).set(
        body_background_fill="#faf9f6",
        body_background_fill_dark="#141518",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1c1e22",
        background_fill_secondary="#f1efea",
        background_fill_secondary_dark="#24262b",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1c1e22",
        block_border_color="#e2dfd8",
        block_border_color_dark="#34373d",
        border_color_primary="#e2dfd8",
        border_color_primary_dark="#34373d",
        block_label_text_color="#202124",
        block_label_text_color_dark="#eceae6",
        block_title_text_weight="600",
        block_title_text_color="#202124",
        block_title_text_color_dark="#eceae6",
        body_text_color="#202124",
        body_text_color_dark="#eceae6",
        body_text_color_subdued="#65676e",
        body_text_color_subdued_dark="#a2a5ad",
        input_background_fill="#faf9f6",
        input_background_fill_dark="#141518",
        input_border_color="#d8d4cb",
        input_border_color_dark="#3c4047",
        button_primary_background_fill="#1461a0",
        button_primary_background_fill_hover="#114f83",
        button_primary_background_fill_dark="#79b8f3",
        button_primary_background_fill_hover_dark="#9ccbf7",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#0c1a28",
        button_secondary_background_fill="#f1efea",
        button_secondary_background_fill_dark="#2b2e34",
    )
