"""The command line of the runtime: generate, inspect, export, download; serve, keys and finetunes are in `commands.py`.

Exit status: 0 when it worked, 1 with one sentence on stderr when it did not. Heavy imports wait until a command needs
them, so that `--help` is quick.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from lora_runtime import commands
from lora_runtime.commands import sentences
from lora_runtime.errors import InvalidInput, KleinLabError, StorageFailed
from lora_runtime.written import quote, read_decimal

if TYPE_CHECKING:
    from lora_runtime.values import Precision

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Run a LoRA on FLUX.2 klein.")
app.command()(commands.serve)
app.command()(commands.cluster)
app.add_typer(commands.keys, name="keys")
app.add_typer(commands.finetunes, name="finetunes")


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="What to draw.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
    lora: Annotated[
        str | None, typer.Option(help="A known name, a file, owner/repo or a URL; none for the base.")
    ] = None,
    adapter: commands.Adapter = None,
    strength: Annotated[str, typer.Option(help="From -15 to 15; few LoRAs take more than 2.")] = "1",
    weights: Annotated[str, typer.Option(help="The base checkpoint.")] = "pocket",
    seed: Annotated[int, typer.Option(help="-1 is a random one.")] = -1,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, for base weights.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp8, bf16 or fp32; by default what runs best here.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A reference image; up to 4, in order.")] = None,
) -> None:
    """Render one image. The PNG carries the arguments that make it again."""
    with sentences():
        from lora_runtime.backends.local import LocalBackend
        from lora_runtime.png import encode_png, request_metadata
        from lora_runtime.references import read_reference
        from lora_runtime.requests import find_status, make_request
        from lora_runtime.strength import warn_strengths
        from lora_runtime.values import Failed, Rendered

        with contextlib.closing(LocalBackend()) as backend:
            request = make_request(
                find_status(backend, weights, _read_precision(precision)),
                prompt=prompt,
                lora=commands.pick_adapter(lora, adapter),
                strength=read_decimal("Strength", strength),
                seed=seed,
                width=width,
                height=height,
                steps=steps,
                guidance=guidance,
                references=[read_reference(path) for path in image or ()],
            )
            if note := warn_strengths([request.strength]):
                print(note, file=sys.stderr)
            for event in backend.render([request]):
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Rendered):
                    _write(out, encode_png(event.image, request_metadata(request)))
                    typer.echo(f"{out}  seed {request.seed}  {event.timing.seconds:.2f} s")


@app.command()
def inspect(
    lora: Annotated[str, typer.Argument(help="A file, a PEFT folder, a known name, owner/repo on the Hub, or a URL.")],
    adapter: commands.Adapter = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a LoRA is and which base it fits. Exit status 1 when it would not load."""
    from lora_runtime.lora.description import describe_file, describe_missing
    from lora_runtime.lora.library import path_of
    from lora_runtime.registry.local import fetch_file

    try:
        found = fetch_file(lora)
        document = describe_file(found if isinstance(found, Path) else path_of(found), adapter=adapter)
    except KleinLabError as error:
        document = describe_missing(error)
    if as_json:
        typer.echo(json.dumps(document))
    else:
        if not document["ok"]:
            typer.echo(_show(document["problems"]))
        for key, value in document.items():
            if key != "problems":
                typer.echo(f"{key.replace('_', ' '):<15} {_show(value)}")
    raise typer.Exit(0 if document["ok"] else 1)


@app.command()
def export(
    lora: Annotated[str, typer.Argument(help="A known name, a file, a PEFT folder, owner/repo on the Hub, or a URL.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    spelling: Annotated[str, typer.Option("--as", help="diffusers, ai-toolkit or kohya.")] = "diffusers",
    strength: Annotated[str, typer.Option(help="What 1 will be. 1 itself only changes the spelling.")] = "1",
    adapter: commands.Adapter = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Take the place of a file that is there.")] = False,
) -> None:
    """Write the same LoRA so that 1 is what STRENGTH was, once what it draws was compared."""
    with sentences():
        from lora_runtime.backends.local import LocalBackend
        from lora_runtime.proof import export_lora
        from lora_runtime.registry.local import fetch_lora

        found = fetch_lora(lora, adapter=adapter)
        with contextlib.closing(LocalBackend()) as backend:
            written = export_lora(
                found, out, strength=read_decimal("Strength", strength), spelling=spelling, backend=backend,
                overwrite=overwrite,
            )  # fmt: skip
    typer.echo("\n".join([f"{out}  {written.sha256}", *written.said]))


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise StorageFailed(
            f"Could not write {path}: {error.strerror or 'the disk failed'}. Choose another."
        ) from error


def _show(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {number:.3g}" for key, number in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


@app.command()
def download(
    what: Annotated[
        str, typer.Argument(help="klein-4b, klein-9b, klein-9b-kv, klein-base-4b, klein-base-9b; or judge.")
    ],
    precision: Annotated[
        str | None, typer.Option(help="Of weights: bf16, or fp8, BFL's smaller transformer. [default: bf16]")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Of a judge: siglip2 or clip, and dinov2; several. [default: siglip2 and dinov2]"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Fetch weights, or what judges pictures, from the Hugging Face Hub. Size and licence are shown first."""
    with sentences():
        if what == "judge":
            from lora_runtime.judges import plan_judges

            if precision is not None:
                raise InvalidInput("--precision is of weights; a judge has none. Leave it out.")
            judges = plan_judges(model or ())
            _confirm([judge.describe() for judge in judges], yes)
            for judge in judges:
                judge.run()
        else:
            from lora_runtime.catalogue import find_weights
            from lora_runtime.pipeline.download import plan_download, run_download

            if model:
                raise InvalidInput("--model is of `download judge`; weights have none. Leave it out.")
            plan = plan_download(find_weights(what), _read_precision(precision) or "bf16")
            _confirm([plan.describe()], yes)
            run_download(plan)
        typer.echo(f"{what} is here.")


def _confirm(descriptions: list[str], yes: bool) -> None:
    typer.echo("\n".join(descriptions))
    if not yes:
        typer.confirm("Download it?", abort=True)


def _read_precision(text: str | None) -> "Precision | None":
    from lora_runtime.values import Precision

    if text is not None and text not in get_args(Precision):
        raise InvalidInput(f"Precision: {quote(text)} is none of {', '.join(get_args(Precision))}.")
    return text  # type: ignore[return-value]


if __name__ == "__main__":
    app()
