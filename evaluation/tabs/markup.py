"""The HTML of the sweep: plain strings, every text escaped, no templates.

`gr.HTML` runs a template through Handlebars and then compiles the result as a JavaScript literal, so a prompt such as
`${alert(1)}` in a template would run. These strings are passed as a component's *value*, which is only ever assigned to
innerHTML; `escape` makes every text inert there.
"""

from collections.abc import Sequence
from decimal import Decimal
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Final
from urllib.parse import quote

from evaluation.axes import TARGET, SweepSpec
from evaluation.captions import shorten
from evaluation.grid import name_lora
from evaluation.judge.answer import Answer
from evaluation.store.store import CellRecord, Verdict
from evaluation.strengths import format_strength, name_strength
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import InvalidStrengths, KleinLabError

GRID_ID: Final = "sweep-grid"

_VERDICTS: Final = {
    True: ("good", "✓", "Trustworthy"),
    False: ("bad", "✕", "Do not trust this sweep"),
    None: ("open", "…", "Not judged yet"),
}

_NO_ANSWER: Final = {
    True: "No LoRA whose strength varies is here. Choose one, and run it.",
    False: "Not before the sweep can be trusted.",
    None: "When the sweep ends: from which strength on the LoRA shows, and up to which one the prompt is followed.",
}


def image_url(path: Path) -> str:
    """Return the address of a file under the blobs folder: the very bytes that were written.

    It is relative to the page, so that it also holds behind a proxy that serves the app under a prefix.
    """
    return f"gradio_api/file={quote(path.as_posix())}"


def draw_grid(
    spec: SweepSpec,
    records: Sequence[CellRecord],
    *,
    running: bool,
    own: bool = True,
    answers: Sequence[Answer] = (),
) -> str:
    """Return a sweep as a table: strengths across, the second axis down, a button for every cell.

    `own`: whoever looks may rate it. The strengths of the answers are marked.
    """
    rows = [tuple(group) for _, group in groupby(records, key=lambda record: record.cell.row)]
    several = len(rows) > 1
    body = "".join(
        f"<tbody>{_row_heading(spec, row[0]) if several else ''}"
        f"<tr>{''.join(_cell(record, running=running) for record in row)}</tr></tbody>"
        for row in rows
    )
    run_id = escape(records[0].run_id) if records else ""
    return _table(
        caption=_caption(spec),
        strengths=spec.strengths,
        body=body,
        shape=(spec.width, spec.height),
        attributes=f'data-run="{run_id}" data-own="{_flag(own)}" aria-busy="{_flag(running)}"',
        answers=answers,
    )


def draw_plan(strengths: Sequence[Decimal], rows: int, shape: tuple[int, int]) -> str:
    """Return the empty grid that a form would fill, so that nothing jumps when it does."""
    values = strengths if Decimal(0) in strengths else (Decimal(0), *strengths)
    tile = '<td><div class="cell planned"></div><span class="meta">&nbsp;</span></td>'
    body = f"<tbody><tr>{tile * len(values)}</tr></tbody>" * min(rows, 4)
    caption = (
        '<p class="prompt">Press <b>Run sweep</b>: the same seed at every strength, side by side.</p>'
        '<ul class="facts"><li>Strength 0 is the base model, without the LoRA</li></ul>'
    )
    return _table(caption=caption, strengths=values, body=body, shape=shape, attributes='class="ghost"')


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


def draw_outcome(
    verdict: Verdict, answers: Sequence[Answer] = (), *, measuring: bool = False, problem: str = ""
) -> str:
    """Return what a sweep says when it ends: can it be trusted, and which strength to use; in words, not by colour.

    `measuring`: the answer is still being worked out. `problem`: why not everything could be measured.
    """
    card = _answer_card("open", "<p>Measuring …</p>") if measuring else _draw_answers(verdict, answers, problem)
    return f'<div class="outcome">{_draw_verdict(verdict)}{card}</div>'


def draw_hint(text: str, *, kind: str = "") -> str:
    """Return a quiet line under a field; `kind` is "", "warn" or "good"."""
    return f'<p class="hint {kind}">{escape(text)}</p>' if text else ""


def list_facts(spec: SweepSpec) -> tuple[str, ...]:
    """Return what the caption of a sweep says beside its prompt."""
    seeds = f"{len(spec.seeds)} seeds" if len(spec.seeds) > 1 else f"seed {spec.seeds[0]}"
    loras = f"{len(spec.loras)} LoRAs" if len(spec.loras) > 1 else f"LoRA {name_lora(spec)}"
    if len({target.weights for target in spec.targets}) > 1:
        return (seeds, loras, f"{len(spec.targets)} weights", f"{spec.width} × {spec.height} px")
    precisions = ", ".join(TARGET.label(spec, target) for target in spec.targets)
    weights = f"{find_weights(spec.weights).label} · {precisions}"
    return (seeds, loras, weights, f"{spec.width} × {spec.height} px", f"{spec.steps} steps")


def _draw_verdict(verdict: Verdict) -> str:
    kind, sign, heading = _VERDICTS[verdict.ok]
    findings = "".join(f"<li><bdi>{escape(finding)}</bdi></li>" for finding in verdict.findings)
    return (
        f'<section class="verdict {kind}" aria-label="Verdict"><span class="sign" aria-hidden="true">{sign}</span>'
        f"<div><b>{heading}</b><p>{escape(verdict.summary)}</p>{f'<ul>{findings}</ul>' if findings else ''}</div>"
        "</section>"
    )


def _draw_answers(verdict: Verdict, answers: Sequence[Answer], problem: str) -> str:
    """Which strength, or why nothing is said of it."""
    hint = draw_hint(problem, kind="warn")
    if not answers:
        return _answer_card("open", f"<p>{_NO_ANSWER[verdict.ok]}</p>{hint}")
    said = ""
    for answer in answers:
        first, colon, rest = answer.sentence.partition(": ")
        words = f"<strong>{escape(first)}</strong>{colon}{escape(rest)}" if answer.best else escape(answer.sentence)
        label = f"<b>{escape(answer.label)}</b> " if len(answers) > 1 else ""
        why = "".join(f"<li><bdi>{escape(line)}</bdi></li>" for line in answer.lines)
        more = f"<details><summary>What was measured</summary><ul>{why}</ul></details>" if why else ""
        said += f"<p><bdi>{label}{words}</bdi></p>{more}"
    return _answer_card("told", f"{said}{hint}")


def _answer_card(kind: str, body: str) -> str:
    return (
        f'<section class="which {kind}" aria-label="Which strength?"><span class="sign" aria-hidden="true">?</span>'
        f"<div><b>Which strength?</b>{body}</div></section>"
    )


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _is_answered(strength: Decimal, answers: Sequence[Answer]) -> bool:
    return any(answer.marks.get(strength) in ("use", "best") for answer in answers if answer.best is not None)


def _table(
    *,
    caption: str,
    strengths: Sequence[Decimal],
    body: str,
    shape: tuple[int, int],
    attributes: str,
    answers: Sequence[Answer] = (),
) -> str:
    heads = "".join(
        f'<th scope="col"{" class=advised" if _is_answered(strength, answers) else ""}>{name_strength(strength)}</th>'
        for strength in strengths
    )
    style = f"--columns:{len(strengths)};--shape:{shape[0]}/{shape[1]}"
    return (
        f'<div class="grid-scroll" tabindex="-1"><table {attributes} style="{style}"><caption>{caption}</caption>'
        f'<thead><tr class="strengths">{heads}</tr></thead>{body}</table></div>'
    )


def _caption(spec: SweepSpec) -> str:
    prompt = f"{len(spec.prompts)} prompts" if len(spec.prompts) > 1 else spec.prompts[0]
    facts = "".join(f"<li><bdi>{escape(fact)}</bdi></li>" for fact in list_facts(spec))
    return f'<p class="prompt"><bdi>{escape(prompt)}</bdi></p><ul class="facts">{facts}</ul>'


def _row_heading(spec: SweepSpec, record: CellRecord) -> str:
    label = f"<bdi>{escape(record.cell.row_label)}</bdi>"
    return f'<tr class="row"><th scope="rowgroup" colspan="{len(spec.strengths)}"><span>{label}</span></th></tr>'


def _cell(record: CellRecord, *, running: bool) -> str:
    """One cell as a button. Arrow keys move between them; grid.js keeps one of them in the tab order."""
    cell = record.cell
    label = f"Strength {format_strength(cell.request.strength)}, seed {cell.request.seed}"
    first = "0" if cell.position == 0 else "-1"
    common = (
        f'type="button" tabindex="{first}" data-position="{cell.position}" data-row="{cell.row}" '
        f'data-column="{cell.column}" data-label="{escape(_short_label(record))}" '
        f'data-strength="{name_strength(cell.request.strength)}" data-where="{escape(cell.row_label)}" '
        f'data-rating="{record.rating or 0}"'
    )
    if record.state == "done" and record.image is not None:
        took = f"{record.seconds:.2f} s" if record.seconds is not None else "kept"
        about = f"{cell.column_label}, seed {cell.request.seed}: {cell.request.prompt}"
        return (
            f'<td><button {common} class="cell done" aria-pressed="false" '
            f'aria-label="{label}, done in {took}. Choose it to compare.">'
            f'<img src="{escape(image_url(record.image))}" alt="{escape(about)}" '
            f'width="{cell.request.width}" height="{cell.request.height}"></button>'
            f'<span class="meta">{took}<span class="stars"></span></span></td>'
        )
    if record.state == "failed":
        reason = record.error or "no reason was given"
        return (
            f'<td><button {common} class="cell failed" aria-label="{label}, failed: {escape(reason)}" '
            f'title="{escape(reason)}"><b>Failed</b><span><bdi>{escape(reason)}</bdi></span></button>'
            '<span class="meta">failed</span></td>'
        )
    kind, word = ("waiting", "waiting") if running else ("left", "not rendered")
    return (
        f'<td><button {common} class="cell {kind}" aria-disabled="true" aria-label="{label}, {word}"></button>'
        f'<span class="meta">{word}</span></td>'
    )


def _short_label(record: CellRecord) -> str:
    """How a cell is called in the two lists of the comparison."""
    cell = record.cell
    row = shorten(cell.row_label, 40)
    return f"{name_strength(cell.request.strength)} · {row}"
