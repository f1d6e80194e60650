"""`python -m benchmarks`: every question, a table each, then everything as one JSON line."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import (
    answer,
    attach,
    batch,
    cluster,
    fp8,
    gpu,
    log,
    many_loras,
    memory,
    page,
    scale,
    scoring,
    server,
    startup,
    strengths,
)
from benchmarks.machine import describe_machine

QUESTIONS: Mapping[str, Callable[[Console], object]] = {
    "strengths": strengths.run,
    "batch": batch.run,
    "fp8": fp8.run,
    "attach": attach.run,
    "many_loras": many_loras.run,
    "memory": memory.run,
    "gpu": gpu.run,
    "startup": startup.run,
    "page": page.run,
    "log": log.run,
    "server": server.run,
    "answer": answer.run,
    "scoring": scoring.run,
    "cluster": cluster.run,
    "scale": scale.run,
}


def main(
    questions: Annotated[
        list[str] | None, typer.Argument(help=f"Some of: {', '.join(QUESTIONS)}. All by default.")
    ] = None,
    part: Annotated[
        list[str] | None, typer.Option(help=f"Of `answer` some of: {', '.join(answer.PARTS)}. All by default.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Measure, print tables, and end with one line of JSON."""
    console = Console()
    asked: dict[str, Callable[[Console], object]] = {**QUESTIONS, "answer": partial(answer.run, parts=part or ())}
    results = {name: asked[name](console) for name in questions or asked}
    document = {"machine": describe_machine(), "results": results}
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    typer.run(main)
