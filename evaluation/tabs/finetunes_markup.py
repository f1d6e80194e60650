"""The HTML of the Finetunes tab: the table, the example, the file check, grants. Plain strings, every text escaped.

Buttons carry what they do in `data-act` and for which finetune in `data-id`; `finetunes.js` hands both to the server.
`data-focus` names a button, so that the focus finds it again after its part of the page was drawn anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from evaluation.tabs.finetunes_norms import draw_norms
from lora_runtime.catalogue import Weights, find_weights
from lora_runtime.lora.check import Report, measure_blocks
from lora_runtime.registry.finetune import Finetune, Source

PANEL_ID: Final = "finetune-panel"
DIALOG_ID: Final = "finetune-dialog"
TITLE_ID: Final = "finetune-dialog-title"

EMPTY: Final = {
    "Owned": (
        "No finetune of your own yet",
        "Press <b>+ Add Finetune</b> and drop a <code>.safetensors</code> file: it is checked before it is saved.",
    ),
    "Shared": (
        "Nothing is shared with you yet",
        "Another organization can grant you one of theirs: it needs your organization id, {organization}.",
    ),
}

_SOURCES: Final = {Source.OWNED: "owned", Source.OFFICIAL: "official", Source.THIRD_PARTY: "shared"}
_CHEVRON: Final = (
    '<svg class="ft-chevron" width="12" height="12" viewBox="0 0 12 12" aria-hidden="true">'
    '<path d="M4 2l4 4-4 4" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round"/></svg>'
)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What a caller needs to know beside an example; `works` is False when the call would be refused."""

    text: str
    works: bool = True


def draw_table(finetunes: Sequence[Finetune], *, opened: str = "", continued: bool = False) -> str:
    """Return finetunes as a table. `continued` is the part below an opened row: its headings are only for the ear."""
    if not finetunes:
        return ""
    rows = "".join(_draw_row(finetune, opened=finetune.id == opened) for finetune in finetunes)
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("Name", "Base Model", "Source", "Actions"))
    caption = "Finetunes, continued" if continued else "Finetunes"
    return (
        f'<table class="finetunes{" continued" if continued else ""}"><caption class="ft-ear">{caption}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def draw_empty(shown: str, organization: str) -> str:
    """Return what to do when the list of a filter is empty; the official ones are in All, so there only a search is."""
    title, text = EMPTY.get(shown, ("No finetune matches", "Search for fewer letters."))
    words = f"<b>{title}</b>{text.format(organization=f'<code>{escape(organization)}</code>')}"
    return f'<div class="empty" role="status">{words}</div>'


def draw_you(organization: str) -> str:
    """Return which organization the page acts for."""
    shown = escape(organization)
    return (
        f'<p class="hint ft-you">You are organization <code>{shown}</code><button type="button" class="ft-plain" '
        f'data-copy="{shown}" aria-label="Copy your organization id">Copy</button></p>'
    )


def draw_note(text: str, *, undo: str = "") -> str:
    """Return what has just happened; `undo` is the finetune that can be brought back."""
    button = ""
    if undo:
        name = escape(undo)
        act = f'data-act="restore" data-id="{name}" data-focus="undo"'
        button = f'<button type="button" class="ft-plain" {act}>Undo</button>'
    return f'<div class="ft-note" role="status"><bdi>{escape(text)}</bdi>{button}</div>'


def draw_deleted(deleted: Sequence[Finetune]) -> str:
    """Return the deleted finetunes that can be restored."""
    if not deleted:
        return ""
    items = "".join(
        f'<li><bdi>{escape(finetune.name)}</bdi> <button type="button" class="ft-plain" data-act="restore" '
        f'data-id="{escape(finetune.name)}" aria-label="Restore {escape(finetune.name)}">Restore</button></li>'
        for finetune in deleted
    )
    return (
        f'<details class="ft-deleted"><summary>Recently deleted ({len(deleted)})</summary>'
        '<p class="hint">They are gone from every list and from the API, and go for good after a while.</p>'
        f"<ul>{items}</ul></details>"
    )


def draw_heading(finetune: Finetune) -> str:
    """Return the heading of the panel of an opened row, and why it cannot be edited when it cannot."""
    why = {
        Source.OWNED: "",
        Source.OFFICIAL: "Official: it comes with this app and is everybody's, so it cannot be changed or deleted. "
        f"Programs may call it {finetune.name} for short, unless they own one of that name.",
        Source.THIRD_PARTY: f"Shared by {finetune.owner}: only {finetune.owner} can change, share or delete it.",
    }[finetune.source]
    reason = f'<p class="hint"><bdi>{escape(why)}</bdi></p>' if why else ""
    facts = "" if finetune.source is Source.OWNED else _list_facts(_list_settings(finetune))
    return f'<h2 class="ft-ear">{escape(finetune.id)}</h2>{reason}{facts}'


def draw_example(program: str, language: str, finetune: Finetune, advice: Advice) -> str:
    """Return a program to copy, and what it takes to run it."""
    return (
        f'<div class="ft-snippet"><div class="ft-bar"><code>POST {escape(finetune.endpoint.path)}</code>'
        '<button type="button" class="ft-plain" data-copy-code aria-label="Copy the example">Copy</button></div>'
        f'<pre tabindex="0" role="region" aria-label="API example in {escape(language)}">'
        f"<code>{escape(program)}</code></pre></div>{draw_hint(advice.text, kind='' if advice.works else 'warn')}"
    )


def draw_grants(finetune: Finetune) -> str:
    """Return with whom a finetune is shared, each with a button to take it back."""
    if not finetune.granted_to:
        return '<p class="hint">Shared with nobody yet. Whoever calls it pays.</p>'
    items = "".join(
        f'<li><code>{escape(name)}</code><button type="button" class="ft-plain" data-act="revoke" '
        f'data-id="{escape(name)}" aria-label="Revoke the grant of {escape(name)}">Revoke</button></li>'
        for name in finetune.granted_to
    )
    called = escape(finetune.full_name)
    words = f'<p class="hint">They call it <code>{called}</code>, and pay for their calls.</p>'
    return f'<ul class="ft-grants">{items}</ul>{words}'


def draw_report(report: Report, *, key: str) -> str:
    """Return what the check of a file found: which base it fits, its facts, notices, and its norm profile."""
    fits = [find_weights(name) for name in report.fits]
    notices = "".join(f"<li><bdi>{escape(notice)}</bdi></li>" for notice in report.notices)
    return (
        '<section class="ft-check" aria-label="File check">'
        '<p class="ft-fits"><span class="ft-sign" aria-hidden="true">✓</span>'
        f"<span>Every layer fits <b>{_join([weights.label for weights in fits])}</b>.</span></p>"
        f"{f'<ul class=ft-notices>{notices}</ul>' if notices else ''}"
        f"{_list_facts(_list_file(report))}{draw_norms(report, key=key)}</section>"
    )


def draw_no_report() -> str:
    """Return what will stand where the report of a file does."""
    return (
        '<div class="empty ft-check-empty"><b>File check</b>Base model, rank, alpha, trigger phrase, and which blocks '
        "the LoRA changes: shown here before anything is saved.</div>"
    )


def draw_problem(text: str, heading: str = "This file cannot be added.") -> str:
    """Return why a file cannot be used; the text says what to do."""
    return f'<div class="error" role="alert"><b>{escape(heading)}</b> <bdi>{escape(text)}</bdi></div>'


def draw_hint(text: str, *, kind: str = "") -> str:
    """Return the line below a field; `kind` is "", "good", "warn" or "bad"."""
    return f'<p class="hint {kind}" role="status"><bdi>{escape(text)}</bdi></p>' if text else ""


def draw_dialog_head(*, close: str = "") -> str:
    """Return the head of the dialog; a new text in `close` tells the page to close it."""
    return (
        f'<div class="ft-dialog-head" data-close="{escape(close)}"><h2 id="{TITLE_ID}">Add Finetune</h2>'
        '<button type="button" class="ft-plain" data-dialog="cancel" aria-label="Close">✕</button></div>'
    )


def draw_checking(name: str) -> str:
    """Return that a file is being read."""
    return (
        f'<div class="progress busy"><p role="status"><bdi>Checking {escape(name)} …</bdi></p>'
        '<div class="bar" aria-hidden="true"><span style="width:0%"></span></div></div>'
    )


def _draw_row(finetune: Finetune, *, opened: bool) -> str:
    shown, weights = escape(finetune.id), find_weights(finetune.weights)
    precision = f'<span class="ft-chip">{finetune.precision.upper()}</span>' if finetune.precision else ""
    trigger = (
        f'<span class="ft-sub">trigger <bdi>{escape(finetune.trigger_phrase)}</bdi></span>'
        if finetune.trigger_phrase
        else ""
    )
    source = f'<span class="ft-source {_SOURCES[finetune.source]}">{finetune.source}</span>'
    small = f'<span class="ft-sub ft-small">{escape(weights.label)} · {finetune.source}</span>'
    return (
        f'<tr data-id="{shown}"{" class=ft-open" if opened else ""}><th scope="row">'
        f'<button type="button" class="ft-name" data-act="open" data-id="{shown}" data-focus="open {shown}" '
        f'aria-expanded="{"true" if opened else "false"}" aria-controls="{PANEL_ID}">{_CHEVRON}<bdi>{shown}</bdi>'
        f"</button>{trigger}{small}</th><td>{escape(weights.label)} {precision}</td><td>{source}</td>"
        f'<td class="ft-actions"><div>{_draw_actions(finetune)}</div></td></tr>'
    )


def _draw_actions(finetune: Finetune) -> str:
    shown = escape(finetune.id)
    actions = [
        ("playground", 'Try<span class="ft-wide"> in Playground</span>', f"Try {shown} in the Playground"),
        ("sweep", 'Sweep<span class="ft-wide"> it</span>', f"Sweep {shown}"),
    ]
    if finetune.source is Source.OWNED:
        actions.append(("delete", "Delete", f"Delete {shown}"))
    return "".join(
        f'<button type="button" class="ft-plain" data-act="{act}" data-id="{shown}" data-focus="{act} {shown}" '
        f'aria-label="{label}">{words}</button>'
        for act, words, label in actions
    )


def _list_settings(finetune: Finetune) -> list[tuple[str, str]]:
    weights = find_weights(finetune.weights)
    return [
        ("Base Model", weights.label),
        *([("Precision", finetune.precision.upper())] if finetune.precision else []),
        ("Trigger Phrase", finetune.trigger_phrase or "none"),
    ]


def _list_file(report: Report) -> list[tuple[str, str]]:
    alphas = sorted({round(layer.scale * layer.rank, 6) for layer in report.layers if layer.rank is not None})
    blocks = [block for block in measure_blocks(report) if block != "top"]
    return [
        ("Format", report.spelling),
        ("Rank", _shorten(report.ranks) if report.ranks else "none (LoKr)"),
        *([("Alpha", _shorten(alphas))] if alphas else []),
        ("Targets", f"{len(report.layers)} layers in {len(blocks)} blocks"),
        *([("Trained on", _trained_on(report))] if report.trained_on else []),
        ("Trigger phrase", report.trigger_phrase or "none in the file"),
        ("Size", _size(report.file.size_bytes)),
        ("SHA-256", f"{report.file.sha256[:16]}…"),
    ]


def _trained_on(report: Report) -> str:
    records: list[Weights] = [find_weights(name) for name in report.fits]
    named = next((record.label for record in records if record.distilled == (report.trained_on == "distilled")), "")
    return f"{named} (the file says so)"


def _list_facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd><bdi>{escape(value)}</bdi></dd>" for name, value in facts)
    return f'<dl class="ft-facts-list">{rows}</dl>'


def _shorten(numbers: Sequence[float]) -> str:
    shown = ", ".join(f"{number:g}" for number in numbers[:4])
    return f"{shown} and {len(numbers) - 4} more" if len(numbers) > 4 else shown


def _join(labels: Sequence[str]) -> str:
    escaped = [escape(label) for label in labels]
    return escaped[0] if len(escaped) == 1 else f"{', '.join(escaped[:-1])}</b> and <b>{escaped[-1]}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:,.1f} kB"
