"""The command line of the evaluation: sweep, resume, runs; those on runs that are there are in `commands.py` and
`voting.py`.

Exit status: 0 when every cell has its image and the verdict is not red; 1 on an error, a failed cell or a red verdict;
130 when Ctrl-C stopped the sweep, with everything done kept. Results go to stdout, a sweep's answer last;
progress and verdict to stderr.
Heavy imports wait until a command needs them, so that `--help` is quick.
"""

import contextlib
import json
import shlex
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evaluation import voting
from evaluation.commands import answer, compare, open_store, print_answers, prompts, report
from evaluation.strengths import DEFAULT_STRENGTHS, note_strengths
from lora_runtime.commands import Adapter, pick_adapter, sentences

if TYPE_CHECKING:
    from types import FrameType

    from evaluation.grid import SweepSpec
    from evaluation.store.store import CellRecord, Run, Store
    from evaluation.sweep import CellEnded, Finished, SweepEvent
    from lora_runtime.backends.base import Backend
    from lora_runtime.lora.training import TrainingRun

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Judge a LoRA: sweep its strengths.")

MARKS = {True: "ok", False: "RED", None: "?"}
"""A verdict in one word."""

Out = Annotated[Path | None, typer.Option(help="Folder for each cell's PNG, grid.png, strengths.webp and cells.csv.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object a cell on stdout, as it ends; then one with the answer.")
]
Remote = Annotated[
    str | None, typer.Option(help="Region (global, eu, us) or base URL of the remote backend. [KLEIN_LAB_REMOTE]")
]
Finetune = Annotated[
    list[str] | None, typer.Option(help="LORA=ID: under which id the remote server knows a LoRA of this machine.")
]

Loras = Annotated[
    list[str] | None,
    typer.Option(
        help="A known name, a .safetensors file, or finetune:ID of the remote server. Several make rows; a folder of "
        "several is a training run."
    ),
]
Checkpoints = Annotated[list[Path] | None, typer.Option(help="A training run: its folder, or its files.")]
Every = Annotated[int | None, typer.Option(help="Each N-th checkpoint, counted back from the last; 2 is every second.")]
Last = Annotated[int | None, typer.Option(help="The last so many checkpoints.")]
Watch = Annotated[
    bool, typer.Option("--watch", help="Sweep each new checkpoint of the folder as it appears, until Ctrl-C.")
]


Likeness = Annotated[
    list[Path] | None,
    typer.Option(help="A picture of the look or the subject that the LoRA was NOT trained on; up to 16, to judge by."),
]
Sure = Annotated[
    bool, typer.Option("--sure", help="Four scenes round the prompt, two seeds each, for an answer that is sure.")
]
Scenes = Annotated[
    str | None, typer.Option(help="Put the scenes of this set round each prompt; `prompts` lists and keeps sets.")
]


@app.command()
def sweep(
    prompt: Annotated[list[str], typer.Option(help="What to draw. Several make rows, each with every seed.")],
    lora: Loras = None,
    checkpoints: Checkpoints = None,
    every: Every = None,
    last: Last = None,
    watch: Watch = False,
    adapter: Adapter = None,
    strengths: Annotated[
        str, typer.Option(help='As in "0, 0.5, 1", "0-1.2 [7]" or "0.7-0.9 (+0.05)"; a range alone is 5 values.')
    ] = DEFAULT_STRENGTHS,
    weights: Annotated[
        str, typer.Option(help="The base checkpoint; several, as in pocket,pocket-base, make rows.")
    ] = "pocket",
    compare_trigger: Annotated[
        bool, typer.Option("--compare-trigger", help="A row with the LoRA's trigger phrase and one without.")
    ] = False,
    seed: Annotated[list[int] | None, typer.Option(help="-1 or none is a random one. Several make rows.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, for base weights.")] = None,
    precision: Annotated[
        str, typer.Option(help="By default what runs best here; several, as in bf16,fp8, make rows.")
    ] = "",
    backend: Annotated[
        str, typer.Option(help="local, cluster (Ray), remote (an API like BFL's), or local,remote: a row of each.")
    ] = "local",
    remote: Remote = None,
    finetune: Finetune = None,
    image: Annotated[list[Path] | None, typer.Option(help="A reference image; up to 4.")] = None,
    likeness: Likeness = None,
    sure: Sure = False,
    prompt_set: Scenes = None,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Add strength 0 when it is not in the list.")] = True,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Render a prompt and seed at every strength, and judge whether the LoRA acted."""
    with sentences(), open_store() as store, _open_backends(backend, remote, finetune or []) as backends:
        from evaluation.grid import make_spec, parse_precisions
        from evaluation.sweep import run_sweep
        from evaluation.training import Given, list_specs
        from lora_runtime.references import read_reference

        given = Given(loras=lora or (), checkpoints=checkpoints or (), every=every, last=last, watched=watch)
        if note := note_strengths(strengths):
            print(note, file=sys.stderr)

        def make(training: "TrainingRun | None") -> "SweepSpec":
            spec = make_spec(
                backends,
                weights=[name.strip() for name in weights.split(",") if name.strip()],
                loras=() if training else [pick_adapter(each, adapter) or each for each in given.loras],
                training=training,
                prompts=prompt,
                strengths=strengths,
                seeds=seed or [None],
                precision=parse_precisions(precision),
                width=width,
                height=height,
                steps=steps,
                guidance=guidance,
                references=[read_reference(path) for path in image or ()],
                likeness=[read_reference(path) for path in likeness or ()],
                compare_trigger=compare_trigger,
                base_column=base,
            )
            return _put_scenes(spec, store, prompt_set, sure=sure)

        status = 0
        with _stop_on_ctrl_c() as cancel:
            for spec in list_specs(given, make, cancel):
                status = _follow(
                    run_sweep(spec, backend=backends, store=store, cancel=cancel), store, cancel, out, as_json
                )
                if watch and not cancel.is_set():
                    print("Waiting for the next checkpoint (Ctrl-C ends).", file=sys.stderr)
        raise typer.Exit(status)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="The run's id; `runs` lists them.")],
    remote: Remote = None,
    finetune: Finetune = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a run: render what has no image yet, and try failed cells again."""
    with sentences(), open_store() as store:
        from evaluation.sweep import resume_sweep
        from lora_runtime.backends.open import name_place

        names = ",".join(dict.fromkeys(name_place(target.server) for target in store.run(run).spec.targets))
        with _open_backends(names, remote, finetune or []) as backends, _stop_on_ctrl_c() as cancel:
            events = resume_sweep(run, backend=backends, store=store, cancel=cancel)
            status = _follow(events, store, cancel, out, as_json)
        raise typer.Exit(status)


@app.command()
def runs(limit: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 20) -> None:
    """List the newest runs."""
    with sentences(), open_store() as store:
        _print_runs(store.history(limit))


app.command()(answer)
app.command()(compare)
app.command()(prompts)
app.command()(report)
app.command()(voting.vote)
app.command()(voting.votes)


@dataclass(kw_only=True)
class _Export:
    """Where the cells of a run go: files in `out`, when there is one."""

    spec: "SweepSpec"
    out: Path | None

    def write_cell(self, record: "CellRecord") -> Path | None:
        """Write a cell's image; return where it lies."""
        if self.out is None or record.image is None:
            return record.image
        from evaluation.report.files import write_cell

        return write_cell(self.out, self.spec, record)

    def write_all(self, records: tuple["CellRecord", ...]) -> None:
        """Write the grid, the animation where there are strengths to go through, and the CSV."""
        if self.out is not None:
            from evaluation.report.animation import moves
            from evaluation.report.files import write_animation, write_csv, write_grid

            write_grid(self.out / "grid.png", self.spec, records)
            if moves(records):
                write_animation(self.out / "strengths.webp", self.spec, records)
            write_csv(self.out / "cells.csv", self.spec, records)


def _follow(
    events: "Generator[SweepEvent, None, None]",
    store: "Store",
    cancel: threading.Event,
    out: Path | None,
    as_json: bool,
) -> int:
    """Show a sweep to its end and write its files; return the exit status."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from evaluation.sweep import CellEnded, Finished, Planned, Stepped

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    ended: list[tuple[CellEnded, Path | None]] = []
    finished: Finished | None = None
    show = Progress(*columns, console=Console(stderr=True), transient=True)
    with contextlib.closing(events), show as progress:
        task = progress.add_task("loading")
        for event in events:
            match event:
                case Planned():
                    export = _Export(spec=event.spec, out=out)
                    progress.console.print(f"run {event.run_id}: {len(event.cells)} cells", highlight=False)
                    progress.update(task, total=len(event.cells))
                case Stepped():
                    where = f" on {event.engines} engines" if event.engines > 1 else ""
                    step = f"step {event.step}/{event.steps}{where}"
                    what = "stopping (Ctrl-C again: at once)" if cancel.is_set() else step
                    progress.update(task, description=what, completed=event.done)
                case CellEnded():
                    ended.append((event, export.write_cell(event.record)))
                    progress.update(task, completed=len(ended))
                    if as_json:
                        print(_json_line(*ended[-1]), flush=True)
                case Finished():
                    finished = event
    if finished is None:
        return 0
    export.write_all(store.cells(finished.run_id))
    if not as_json:
        _print_cells(ended, store)
    if not finished.stopped:
        _print_answer(store, finished, as_json)
    return _sum_up(finished, ended, out)


def _print_answer(store: "Store", finished: "Finished", as_json: bool) -> None:
    """Say which strength to use. The pictures are there, so a judge that cannot be loaded ends nothing."""
    from evaluation.judge.answer import answer_run
    from lora_runtime.errors import KleinLabError

    try:
        answers = answer_run(store, finished.run_id)
    except KleinLabError as error:
        print(f"No answer: {error}", file=sys.stderr)
        answers = ()
        if not as_json:
            return
    print_answers(answers, store.run(finished.run_id), as_json=as_json)


def _put_scenes(spec: "SweepSpec", store: "Store", name: str | None, *, sure: bool) -> "SweepSpec":
    """Put the scenes of a prompt set round the prompts; to be sure, with two seeds each."""
    from evaluation.prompt_sets import FOUR_SCENES, PromptSets, describe_effort, make_sure
    from lora_runtime.registry.accounts import LOCAL

    found = PromptSets(store).find(LOCAL, name) if name else FOUR_SCENES
    if not sure:
        return found.put_round(spec) if name else spec
    spec = make_sure(spec, (), found)
    print(f"To make sure: {describe_effort(spec, store)}.", file=sys.stderr)
    return spec


def _sum_up(finished: "Finished", ended: "list[tuple[CellEnded, Path | None]]", out: Path | None) -> int:
    """Print the verdict on stderr; return the exit status."""
    verdict = finished.verdict
    print(f"verdict {MARKS[verdict.ok]}: {verdict.summary}", *verdict.findings, sep="\n  ", file=sys.stderr)
    if out is not None:
        print(f"files in {out}", file=sys.stderr)
    failed = any(event.status == "failed" for event, _ in ended)
    if finished.stopped:
        print(f"Stopped; what is done is kept. Go on with: {_resume(finished.run_id, out)}", file=sys.stderr)
        return 130
    if failed:
        print(f"Some cells failed. Try them again with: {_resume(finished.run_id, out)}", file=sys.stderr)
    return int(failed or verdict.ok is False)


def _resume(run_id: str, out: Path | None) -> str:
    return f"python -m evaluation resume {run_id}{f' --out {shlex.quote(str(out))}' if out else ''}"


def _json_line(event: "CellEnded", image: Path | None) -> str:
    from evaluation.report.columns import show_record

    told = {**show_record(event.record), "status": event.status, "image": str(image) if image else None}
    return json.dumps(told, ensure_ascii=False)


def _print_cells(ended: "list[tuple[CellEnded, Path | None]]", store: "Store") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from evaluation.judge.metrics import METRICS

    # Read again: a cell that ended before its base image was scored later.
    records = [store.record(event.record.run_id, event.record.cell) for event, _ in ended]
    several, failed = len({record.cell.row for record in records}) > 1, any(record.error for record in records)
    headings = ("strength", "status", "seconds", *(metric.label for metric in METRICS.values()))
    table = Table(
        *([Column("row", max_width=28, no_wrap=True)] if several else []),
        *(Column(heading, no_wrap=True) for heading in headings),
        *([Column("error", overflow="fold")] if failed else []),
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for record, (event, _) in zip(records, ended, strict=True):
        scores = [f"{record.scores[name]:.4f}" if name in record.scores else "" for name in METRICS]
        seconds = "" if record.seconds is None else f"{record.seconds:.2f}"
        cells = [record.cell.column_label.removeprefix("strength "), event.status, seconds, *scores]
        # Text: names and prompts are never read as markup.
        row = [*([record.cell.row_label] if several else []), *cells, *([record.error or ""] if failed else [])]
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _print_runs(history: "tuple[tuple[Run, tuple[CellRecord, ...]], ...]") -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from evaluation.captions import call_loras, shorten, title_spec

    called = call_loras(run.spec for run, _ in history)
    table = Table(Column("run", no_wrap=True), "started (UTC)", "weights", "LoRA", "prompt", "cells", "verdict")
    for run, records in history:
        done = sum(record.state == "done" for record in records)
        row = (
            run.id,
            f"{run.created:%Y-%m-%d %H:%M}",
            f"{_join(target.weights for target in run.spec.targets)} "
            f"{_join(target.precision for target in run.spec.targets)}",
            ", ".join(called[lora] for lora in run.spec.loras),
            title_spec(run.spec),
            f"{done}/{len(records)}",
            MARKS[run.verdict.ok] if run.verdict else "",
        )
        table.add_row(*(Text(shorten(cell, 60)) for cell in row))
    Console().print(table)


def _join(names: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(names))


@contextlib.contextmanager
def _open_backends(names: str, remote: str | None, finetunes: list[str]) -> "Iterator[Mapping[str, Backend]]":
    from lora_runtime.backends.open import open_backend, parse_backends, parse_finetunes

    known = parse_finetunes(finetunes)
    with contextlib.ExitStack() as stack:
        backends = [
            stack.enter_context(contextlib.closing(open_backend(name, remote=remote, finetunes=known)))
            for name in parse_backends(names)
        ]
        yield {backend.name: backend for backend in backends}


@contextlib.contextmanager
def _stop_on_ctrl_c() -> Iterator[threading.Event]:
    """Make the first Ctrl-C stop the sweep after the step under way, and a second one end the program."""
    cancel = threading.Event()

    def stop(_signal: int, _frame: "FrameType | None") -> None:
        cancel.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    app()
