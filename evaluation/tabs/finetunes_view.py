"""What the Finetunes tab shows, worked out for `templates/finetunes.html`: rows, facts of a file, why not to edit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.report.draw import part
from evaluation.tabs.finetunes_form import describe_fields
from evaluation.tabs.finetunes_norms import picture_norms
from lora_runtime.catalogue import find_weights
from lora_runtime.lora.check import Report, measure_blocks
from lora_runtime.registry.finetune import Finetune, Source
from lora_runtime.registry.training_runs import Listed

_KINDS: Final = {Source.OWNED: "owned", Source.OFFICIAL: "official", Source.THIRD_PARTY: "shared"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A finetune in the list. `kind` is its source in the words of the style sheet; `inside` a training run."""

    id: str
    base: str
    precision: str
    trigger: str
    strength: str
    source: str
    kind: str
    opened: bool
    acts: tuple[str, ...]
    inside: bool = False


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A training run in the list: its checkpoints stand below it when it is opened."""

    name: str
    count: int
    base: str
    opened: bool


def list_rows(
    finetunes: Sequence[Finetune], runs: Sequence[Listed] = (), *, opened: str = "", unfolded: str = ""
) -> list[Row | RunRow]:
    """Return the rows of the list: a training run stands where the first of its checkpoints would, as one row."""
    of = {sha256: run for run in reversed(runs) for sha256 in run.files}
    own = [each for each in finetunes if each.source is Source.OWNED]
    rows: list[Row | RunRow] = []
    placed = set()
    for finetune in finetunes:
        run = of.get(finetune.lora.sha256) if finetune.source is Source.OWNED else None
        if run is None:
            rows.append(make_row(finetune, opened=opened))
        elif run.name not in placed:
            placed.add(run.name)
            inside = [each for sha256 in run.files if of[sha256] is run for each in own if each.lora.sha256 == sha256]
            base, is_open = describe_fields(inside[0])["Base Model"], run.name == unfolded
            rows.append(RunRow(name=run.name, count=len(inside), base=base, opened=is_open))
            rows += [make_row(each, opened=opened, inside=True) for each in inside if is_open]
    return rows


def make_row(finetune: Finetune, *, opened: str = "", inside: bool = False) -> Row:
    """Return the row of a finetune, with what its organization can do with it."""
    own = ("delete",) if finetune.source is Source.OWNED else ()
    fields = describe_fields(finetune)
    return Row(
        id=finetune.id,
        base=fields["Base Model"],
        precision=fields["Precision"],
        trigger=fields["Trigger Phrase"],
        strength=fields["Recommended Strength"],
        source=finetune.source,
        kind=_KINDS[finetune.source],
        opened=finetune.id == opened,
        acts=("playground", "sweep", *own),
        inside=inside,
    )


def draw_table(rows: Sequence[Row | RunRow], *, continued: bool = False) -> str:
    """Return rows as a table; `continued` is the part below an opened one."""
    return part("table", "finetunes.html", rows=rows, continued=continued)


def draw_heading(finetune: Finetune) -> str:
    """Return the heading of the panel of an opened row, and why it cannot be edited when it cannot."""
    facts = {} if finetune.source is Source.OWNED else {k: v for k, v in describe_fields(finetune).items() if v}
    return part("heading", "finetunes.html", id=finetune.id, reason=say_why_not(finetune), facts=facts)


def say_why_not(finetune: Finetune) -> str:
    """Return why a finetune cannot be edited; empty when it can."""
    return {
        Source.OWNED: "",
        Source.OFFICIAL: "Official: it comes with this app and is everybody's, so it cannot be changed or deleted. "
        f"Programs may call it {finetune.name} for short, unless they own one of that name.",
        Source.THIRD_PARTY: f"Shared by {finetune.owner}: only {finetune.owner} can change, share or delete it.",
    }[finetune.source]


def draw_report(report: Report, *, key: str) -> str:
    """Return what the check of a file found; `key` tells several of a page apart."""
    return part(
        "report", "finetunes.html", fits=[find_weights(name).label for name in report.fits], notices=report.notices,
        facts=list_file(report), norms=picture_norms(report), key=key,
    )  # fmt: skip


def list_file(report: Report) -> dict[str, str]:
    """Return the facts of a file by name."""
    alphas = sorted({round(layer.scale * layer.rank, 6) for layer in report.layers if layer.rank is not None})
    blocks = [block for block in measure_blocks(report) if block != "top"]
    return {
        "Format": report.spelling,
        "Rank": _shorten(report.ranks) if report.ranks else "none (LoKr)",
        **({"Alpha": _shorten(alphas)} if alphas else {}),
        "Targets": f"{len(report.layers)} layers in {len(blocks)} blocks",
        **({"Trained on": _trained_on(report)} if report.trained_on else {}),
        "Trigger phrase": report.trigger_phrase or "none in the file",
        "Size": _size(report.file.size_bytes),
        "SHA-256": f"{report.file.sha256[:16]}…",
    }


def _trained_on(report: Report) -> str:
    records = [find_weights(name) for name in report.fits]
    named = next((record.label for record in records if record.distilled == (report.trained_on == "distilled")), "")
    return f"{named} (the file says so)"


def _shorten(numbers: Sequence[float]) -> str:
    shown = ", ".join(f"{number:g}" for number in numbers[:4])
    return f"{shown} and {len(numbers) - 4} more" if len(numbers) > 4 else shown


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:,.1f} kB"
