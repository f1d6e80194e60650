"""The command line of the runtime: generate, inspect.

Exit status: 0 when it worked, 1 with one sentence on stderr when it did not. Heavy imports wait until a command needs
them, so that `--help` is quick.
"""

import contextlib
import json
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from lora_runtime.errors import InvalidInput, KleinLabError

if TYPE_CHECKING:
    from lora_runtime.lora.check import Report
    from lora_runtime.values import Precision

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Run a LoRA on FLUX.2 [klein].")


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="What to draw.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
    lora: Annotated[str | None, typer.Option(help="A known name or a .safetensors file; none for the base.")] = None,
    strength: Annotated[str, typer.Option(help="From -4 to 4.")] = "1",
    weights: Annotated[str, typer.Option(help="The base checkpoint.")] = "pocket",
    seed: Annotated[int, typer.Option(help="-1 is a random one.")] = -1,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, for base weights.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp8, bf16 or fp32; by default what runs best here.")] = None,
) -> None:
    """Render one image. The PNG carries the arguments that make it again."""
    with _sentences():
        from lora_runtime.backends.local import LocalBackend
        from lora_runtime.png import encode_png, request_metadata
        from lora_runtime.requests import make_request
        from lora_runtime.values import Failed, Rendered

        with contextlib.closing(LocalBackend()) as backend:
            request = make_request(
                backend,
                weights=weights,
                prompt=prompt,
                lora=lora,
                strength=_read_strength(strength),
                seed=seed,
                precision=_read_precision(precision),
                width=width,
                height=height,
                steps=steps,
                guidance=guidance,
            )
            for event in backend.render([request]):
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Rendered):
                    out.parent.mkdir(parents=True, exist_ok=True)
                    out.write_bytes(encode_png(event.image, request_metadata(request)))
                    typer.echo(f"{out}  seed {request.seed}  {event.timing.seconds:.2f} s")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a LoRA file is and which base it fits. Exit status 1 when it would not load."""
    from lora_runtime.lora.check import check_file

    document: dict[str, Any] = dict.fromkeys(_REPORT_KEYS)
    try:
        document |= _describe(check_file(file))
    except KleinLabError as error:
        document |= {"ok": False, "problems": [str(error)]}
    if as_json:
        typer.echo(json.dumps(document))
    else:
        for key, value in document.items():
            typer.echo(f"{key.replace('_', ' '):<15} {_show(value)}")
    raise typer.Exit(0 if document["ok"] else 1)


_REPORT_KEYS = (
    "ok", "format", "base", "trained_on", "rank", "alpha", "trigger_phrase", "matched", "unmatched", "notices",
    "problems", "sha256", "norms",
)  # fmt: skip


def _show(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {number:.3g}" for key, number in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _describe(report: "Report") -> dict[str, Any]:
    """A report as JSON. alpha is scale x rank; norms are those of the weight change, by block."""
    from lora_runtime.lora.check import measure_blocks

    alphas = {round(layer.scale * layer.rank, 6) for layer in report.layers}
    return {
        "ok": True,
        "format": report.spelling,
        "base": list(report.fits),
        "trained_on": report.trained_on,
        "rank": list(report.ranks),
        "alpha": sorted(alphas),
        "trigger_phrase": report.trigger_phrase,
        "matched": len(report.layers),
        "unmatched": [],
        "notices": list(report.notices),
        "problems": [],
        "sha256": report.file.sha256,
        "norms": measure_blocks(report),
    }


def _read_strength(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise InvalidInput(f"Strength: {text!r} is not a number.") from error


def _read_precision(text: str | None) -> "Precision | None":
    from lora_runtime.values import Precision

    if text is not None and text not in get_args(Precision):
        raise InvalidInput(f"Precision: {text!r} is none of {', '.join(get_args(Precision))}.")
    return text  # type: ignore[return-value]


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Turn our errors into one sentence and exit status 1."""
    try:
        yield
    except KleinLabError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
