"""The HTML of the sweep: plain strings, every text escaped, no templates.

`gr.HTML` runs a template through Handlebars and then compiles the result as a JavaScript literal, so a prompt such as
`${alert(1)}` in a template would run. These strings are passed as a component's *value*, which is only ever assigned to
innerHTML; `escape` makes every text inert there.
"""

from collections.abc import Sequence
from html import escape

from evaluation.judge.advice import Advice
from evaluation.report.cards import view_answer, view_verdict
from evaluation.report.draw import draw
from evaluation.store.store import Verdict
from lora_runtime.errors import InvalidStrengths, KleinLabError


def draw_progress(*, done: int, total: int, words: Sequence[str] = (), running: bool = True) -> str:
    """Return the one live line of a run ("5 of 8 · step 3 of 4 · about 4 s left") and its bar."""
    line = " · ".join([f"{done} of {total}", *words])
    busy = "busy" if running else "idle"
    share = round(100 * done / total) if total else 0
    return (
        f'<div class="progress {busy}"><p role="status" aria-live="polite">{escape(line)}</p>'
        f'<div class="bar" aria-hidden="true"><span style="width:{share}%"></span></div></div>'
    )


def draw_message(text: str, *, running: bool = False) -> str:
    """Return a status line without numbers."""
    busy = "busy" if running else "idle"
    return (
        f'<div class="progress {busy}"><p role="status" aria-live="polite">{escape(text)}</p>'
        '<div class="bar" aria-hidden="true"><span style="width:0%"></span></div></div>'
    )


def draw_error(error: KleinLabError) -> str:
    """Return an error where the eye is; for strengths, with the place marked."""
    where = ""
    if isinstance(error, InvalidStrengths):
        before, wrong = error.text[: error.position], error.text[error.position : error.position + 12]
        where = (
            f'<code class="where" dir="ltr"><span>{escape(before[-40:])}</span>'
            f"<mark>{escape(wrong) or '&nbsp;'}</mark></code>"
        )
    return (
        f'<div class="error" role="alert"><b>That does not work yet.</b> <bdi>{escape(str(error))}</bdi>{where}</div>'
    )


def draw_outcome(verdict: Verdict, answer: Advice | None = None, *, measuring: bool = False, problem: str = "") -> str:
    """Return what a sweep says when it ends, as two cards."""
    cards = (view_verdict(verdict), view_answer(verdict, answer, measuring=measuring, problem=problem))
    return draw("outcome.html", cards=cards, live=True)


def draw_hint(text: str, *, kind: str = "") -> str:
    """Return a quiet line under a field; `kind` is "", "warn" or "good"."""
    return f'<p class="hint {kind}">{escape(text)}</p>' if text else ""
