"""The commands that look at runs that are there: `compare` puts their scores side by side, `report` writes a file.

Both first score how well pictures follow their prompts where that is missing. Lines stay within 80 columns.
"""

import contextlib
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lora_runtime.commands import sentences
from lora_runtime.errors import InvalidInput
from lora_runtime.written import count_of

if TYPE_CHECKING:
    from decimal import Decimal

    from evaluation.judge.answer import Answer
    from evaluation.report.columns import Column
    from evaluation.store.store import CellRecord, Run, Store

WIDTH: Final = 80
LETTERS: Final = "ABCDEFGH"
"""How runs are called in the columns of a comparison."""

REPORT: Final = ".html"

Curves = Mapping[str, Mapping["Decimal", float]]
"""Score -> strength -> its mean over the rows of a run."""


def compare(
    run: Annotated[list[str], typer.Argument(help="Ids of runs, up to 8; `runs` lists them.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Put the scores of runs side by side, strength by strength, and say which strength to use."""
    with sentences(), open_store() as store:
        if len(run) > len(LETTERS):
            raise InvalidInput(f"Compare: {len(run)} runs are too many; give up to {len(LETTERS)}.")
        found = [_look_at(store, run_id) for run_id in dict.fromkeys(run)]
        if as_json:
            typer.echo(json.dumps({"runs": [_facts(*each) for each in found]}, ensure_ascii=False, indent=2))
        else:
            _print_comparison(found)


def report(
    run: Annotated[list[str], typer.Argument(help="Ids of runs; `runs` lists them.")],
    out: Annotated[Path, typer.Option(help="The file: .html with images, or .csv, .jsonl, .parquet.")] = Path(
        "report.html"
    ),
) -> None:
    """Write runs into one file: an HTML report that opens offline, or a table of their cells."""
    with sentences(), open_store() as store:
        from evaluation.report.columns import make_table
        from evaluation.report.files import TABLES, write_file, write_table

        ending = out.suffix.lower()
        if ending != REPORT and ending not in TABLES:
            raise InvalidInput(f"Out: {out.name} ends in none of {REPORT}, {', '.join(TABLES)}. Choose one of them.")
        found = [_look_at(store, run_id) for run_id in dict.fromkeys(run)]
        groups = [(logged, records) for logged, records, _ in found]
        if ending == REPORT:
            from evaluation.report.html import html_report

            data = html_report(groups, {logged.id: answers for logged, _, answers in found}).encode()
        else:
            data = write_table(make_table(record for _, records in groups for record in records), ending)
        write_file(out, data)
        typer.echo(f"{out} ({len(data) / 1e3:,.0f} kB)")


@contextlib.contextmanager
def open_store() -> "Iterator[Store]":
    """Open the store of the home folder for a command."""
    from evaluation.store.store import Store
    from lora_runtime.settings import settings

    with contextlib.closing(Store.open(settings())) as store:
        yield store


def _look_at(store: "Store", run_id: str) -> "tuple[Run, tuple[CellRecord, ...], tuple[Answer, ...]]":
    from evaluation.judge.measure import judge_run

    answers = judge_run(store, run_id)
    run, records = store.look(run_id)
    return run, tuple(record for record in records if not record.deleted), answers


def answer(
    run: Annotated[str, typer.Argument(help="The run's id; `runs` lists them.")],
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Say which strength of a run to use, how sure that is, and what it rests on."""
    with sentences(), open_store() as store:
        from evaluation.judge.answer import answer_run

        print_answers(answer_run(store, run), store.run(run), as_json=as_json)


def prompts(
    name: Annotated[str | None, typer.Argument(help="The set to keep or to delete; none lists all.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="A prompt of the set; several. What the first shows becomes {subject}; {trigger} is the LoRA's."
        ),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the set.")] = False,
) -> None:
    """List prompt sets, keep one under a name, or delete one. `sweep --prompt-set NAME` puts it round a prompt."""
    with sentences(), open_store() as store:
        from evaluation.prompt_sets import PromptSet, PromptSets
        from lora_runtime.registry.accounts import LOCAL

        sets = PromptSets(store)
        if name is None or not (prompt or delete):
            for each in sets.list(LOCAL) if name is None else [sets.find(LOCAL, name)]:
                typer.echo("\n  ".join((each.name, *each.prompts)))
        elif delete:
            sets.delete(LOCAL, name)
            typer.echo(f"Deleted {name}.")
        else:
            kept = PromptSet.of(name, prompt or (), None)
            typer.echo(f"{'Replaced' if sets.save(LOCAL, kept) else 'Kept'} {name}: {'; '.join(kept.prompts)}")


def print_answers(answers: "Sequence[Answer]", run: "Run", *, as_json: bool) -> None:
    """Print the answers of a run: sentences, or with `as_json` one line."""
    if as_json:
        typer.echo(json.dumps(_answer_facts(answers, run), ensure_ascii=False))
        return
    for line in _say_training(answers, run) or _say_answers(answers, red=run.is_red):
        typer.echo(line)


def _answer_facts(answers: "Sequence[Answer]", run: "Run") -> dict[str, object]:
    """The answers of a run as JSON; with those of a training run what it comes to."""
    from evaluation.judge.training import answer_training, say_facts

    training = run.spec.training
    if training is None:
        return {"answer": [each.facts for each in answers]}
    found = answer_training(training, answers)
    return {"answer": say_facts(training, answers), "training": found.facts if found else None}


def _say_training(answers: "Sequence[Answer]", run: "Run") -> list[str]:
    """What a training run comes to, in lines of 80 columns; none for other sweeps."""
    from evaluation.judge.training import answer_training

    found = answer_training(run.spec.training, answers)
    if found is None:
        return []
    rests_on = (*found.lines, *(found.chosen.lines if found.chosen else ()))
    told = (found.sentence, *(f"  {line}" for line in rests_on))
    return [textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in told]


def _say_answers(answers: "Sequence[Answer]", *, red: bool) -> list[str]:
    """The answers in lines of 80 columns; why there are none, where there are none."""
    if not answers:
        return ["No answer, as the verdict is red." if red else "No answer: there is no LoRA whose strength varies."]
    said = []
    for each in answers:
        head = each.sentence if len(answers) == 1 else f"{each.label}: {each.sentence}"
        said.append(textwrap.fill(head, WIDTH, subsequent_indent="  "))
        said += [textwrap.fill(f"  {line}", WIDTH, subsequent_indent="  ") for line in each.lines]
    return said


def _read_curves(records: "Sequence[CellRecord]") -> Curves:
    """The scores that some cell has, and ratings and seconds."""
    from evaluation.report.chart import read_curve
    from evaluation.report.columns import list_columns

    curves = {name: read_curve(records, column.value) for name, column in list_columns("measure").items()}
    return {name: curve for name, curve in curves.items() if curve}


def _facts(run: "Run", records: "Sequence[CellRecord]", answers: "Sequence[Answer]") -> dict[str, object]:
    """A run as JSON: strengths are numbers, and what is not known is null."""
    curves = _read_curves(records)
    strengths = sorted({record.cell.request.strength for record in records})
    return {
        "run": run.id,
        "loras": [lora.name for lora in run.spec.loras],
        "lora_sha256": [lora.sha256 for lora in run.spec.loras],
        "prompts": list(run.spec.prompts),
        "seeds": list(run.spec.seeds),
        "verdict": run.verdict.summary if run.verdict else None,
        "strengths": [
            {
                "strength": float(strength),
                "cells": sum(record.cell.request.strength == strength for record in records),
                **{name: curve.get(strength) for name, curve in curves.items()},
            }
            for strength in strengths
        ],
        **_answer_facts(answers, run),
    }


def _print_comparison(found: "Sequence[tuple[Run, Sequence[CellRecord], Sequence[Answer]]]") -> None:
    from evaluation.captions import call_loras, shorten, title_spec
    from evaluation.report.columns import list_columns

    called = call_loras(run.spec for run, _, _ in found)
    for letter, (run, records, _) in zip(LETTERS, found, strict=False):
        rows = len({record.cell.row for record in records})
        words = [
            run.id,
            ", ".join(called[lora] for lora in run.spec.loras) or "no LoRA",
            count_of(rows, "row"),
        ]
        line = " ".join(" · ".join([*words, title_spec(run.spec)]).split())
        typer.echo(f"{letter}  {shorten(line, WIDTH - 3)}")
    curves = [_read_curves(records) for _, records, _ in found]
    columns = [column for name, column in list_columns("measure").items() if any(name in each for each in curves)]
    if len(found) == 1:
        _print_table("", {column.label: (curves[0][column.name], column) for column in columns})
    else:
        for column in columns:
            own = zip(LETTERS, curves, strict=False)
            _print_table(column.label, {letter: (each.get(column.name, {}), column) for letter, each in own})
    for letter, (run, _, answers) in zip(LETTERS, found, strict=False):
        typer.echo(f"\n{letter}")
        print_answers(answers, run, as_json=False)


def _print_table(title: str, columns: "Mapping[str, tuple[Mapping[Decimal, float], Column]]") -> None:
    """A line a strength, a column a run or a score; headings break into two lines where they are long."""
    from evaluation.strengths import exact

    strengths = sorted({strength for curve, _ in columns.values() for strength in curve})
    width = max(8, min(14, (WIDTH - 10) // max(len(columns), 1)))
    heads = [textwrap.wrap(name, width - 2) for name in columns]
    depth = max((len(head) for head in heads), default=1)
    typer.echo(f"\n{title}".rstrip() if title else "")
    for line in range(depth):
        cells = (([""] * (depth - len(head)) + head)[line] for head in heads)
        typer.echo(("strength" if line == depth - 1 else "").ljust(8) + "".join(cell.rjust(width) for cell in cells))
    for strength in strengths:
        values = (
            f"{curve[strength]:.{column.measure.digits}f}" if column.measure and strength in curve else "–"
            for curve, column in columns.values()
        )
        typer.echo(exact(strength).ljust(8) + "".join(value.rjust(width) for value in values))
