"""`python -m benchmarks`: every question, a table each, then everything as one JSON line."""

import json
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
    server,
    startup,
    strengths,
)
from benchmarks.machine import describe_machine

QUESTIONS = {
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
    "cluster": cluster.run,
    "scale": scale.run,
}


def main(
    questions: Annotated[
        list[str] | None, typer.Argument(help=f"Some of: {', '.join(QUESTIONS)}. All by default.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Measure, print tables, and end with one line of JSON."""
    console = Console()
    results = {name: QUESTIONS[name](console) for name in questions or QUESTIONS}
    document = {"machine": describe_machine(), "results": results}
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    typer.run(main)
