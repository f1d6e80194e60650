"""Commands of the server: serve, keys, finetunes. `__main__.py` adds them to the command line.

They work on the home folder's database, so they can be used while a server runs on it.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_runtime.errors import InvalidInput, KleinLabError
from lora_runtime.written import quote, read_decimal

if TYPE_CHECKING:
    from lora_runtime.registry.accounts import Accounts
    from lora_runtime.registry.finetunes import Finetunes
    from lora_runtime.values import LoraRef

keys = typer.Typer(no_args_is_help=True, help="API keys and credits of organizations.")
finetunes = typer.Typer(no_args_is_help=True, help="The registered LoRAs that the API renders by name.")

Organization = Annotated[str, typer.Option(help="Lowercase letters, digits, hyphens, underscores.")]
Owner = Annotated[str, typer.Option(help="Whose finetunes; `local` is yours as long as there are no keys.")]
FinetuneId = Annotated[
    str, typer.Argument(help="NAME, or ORGANIZATION/NAME; an official one by its name alone, if you own none of it.")
]
Adapter = Annotated[str | None, typer.Option(help="Which adapter, where the file holds several.")]
Base = Annotated[str | None, typer.Option(help="pocket, klein-4b, klein-9b-kv, ...: what it was trained for.")]
PrecisionName = Annotated[str | None, typer.Option(help="fp8 by default; bf16 only for klein-9b-kv.")]


def serve(
    host: Annotated[str | None, typer.Option(help="By default HOST, or 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="By default PORT, or 7860.")] = None,
    backend: Annotated[str, typer.Option(help="local, or cluster: every engine of a Ray cluster.")] = "local",
) -> None:
    """Serve the BFL API without the app, until Ctrl-C."""
    with sentences():
        from lora_runtime.backends.open import open_backend
        from lora_runtime.server.addresses import is_loopback_name
        from lora_runtime.server.api import serve
        from lora_runtime.settings import settings

        given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
        chosen = settings().model_copy(update=given)
        with _accounts() as accounts:
            if not is_loopback_name(chosen.host) and not accounts.has_keys():
                typer.echo(
                    "There are no keys yet, so only this machine is served. "
                    "Make one: python -m lora_runtime keys create --organization NAME",
                    err=True,
                )
        url = f"http://{chosen.host}:{chosen.port}"
        typer.echo(f"The API is at {url}/v1, its documentation at {url}/v1/docs   (Ctrl-C ends it; nothing is lost)")
        sys.stdout.flush()
        serve(open_backend(backend), chosen)


def cluster(as_json: Annotated[bool, typer.Option("--json", help="One JSON object an engine.")] = False) -> None:
    """List the engines of the cluster at KLEIN_LAB_RAY; without one, those for the GPUs of this machine."""
    with sentences():
        import json
        from dataclasses import asdict

        from lora_runtime.backends.open import open_cluster

        with contextlib.closing(open_cluster()) as backend:
            for engine in backend.engines():
                if as_json:
                    typer.echo(json.dumps(asdict(engine)))
                else:
                    runs = ", ".join(engine.runs)
                    typer.echo(f"{engine.name:<24} {engine.device:<24} {engine.state:<9} {runs}".rstrip())


@keys.command("create")
def create_key(
    organization: Organization,
    label: Annotated[str, typer.Option(help="A note for you.")] = "",
) -> None:
    """Make a key and show it, once. From the first key on, the API demands one."""
    with sentences(), _accounts() as accounts:
        record, key = accounts.create_key(organization, label=label)
    typer.echo(key)
    typer.echo(f"{record.id} of {organization}. It is not shown again; send it as the x-key header.", err=True)


@keys.command("list")
def list_keys(organization: Annotated[str | None, typer.Option(help="Only theirs.")] = None) -> None:
    """Show every key's id, organization, label and state, never the key itself."""
    with sentences(), _accounts() as accounts:
        for key in accounts.list_keys(organization):
            state = f"revoked {_day(key.revoked)}" if key.revoked else "active"
            typer.echo(f"{key.id}  {key.organization:<20} {_day(key.created)}  {state:<19}  {key.label}".rstrip())


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="As `keys list` shows it.")]) -> None:
    """Let a key work no more."""
    with sentences(), _accounts() as accounts:
        key = accounts.revoke_key(key_id)
    typer.echo(f"{key.id} of {key.organization} works no more.")


@keys.command("credits")
def show_credits(
    organization: Organization,
    add: Annotated[str | None, typer.Option(help="Credits to add; from then on tasks are paid from them.")] = None,
) -> None:
    """Show what an organization spent and has left, or add to it."""
    with sentences(), _accounts() as accounts:
        if add is not None:
            accounts.add_credits(
                organization,
                read_decimal("Credits", add, remedy="Write one such as 100."),
                note="added on the command line",
            )
        count, spent = accounts.spent(organization)
        left = accounts.credits_of(organization)
    typer.echo(
        f"{organization}: {count} images, {spent} credits spent, {'no limit' if left is None else f'{left} left'}."
    )


@finetunes.command("add")
def add_finetune(
    file: Annotated[Path, typer.Argument(help="A .safetensors file.")],
    name: Annotated[str, typer.Option(help="Becomes the finetune_id.")],
    base: Annotated[str, typer.Option(help="pocket, klein-4b, klein-9b-kv, ...: what it was trained for.")],
    precision: PrecisionName = None,
    adapter: Adapter = None,
    trigger_phrase: Annotated[str | None, typer.Option(help="By default the one in the file, if any.")] = None,
    organization: Owner = "local",
) -> None:
    """Check a LoRA file and register it."""
    with sentences(), _registry() as registry:
        added = registry.add_file(
            organization,
            file,
            name=name,
            weights=base,
            precision=precision,
            trigger_phrase=trigger_phrase,
            adapter=adapter,
        )
    typer.echo(f"{added.id} is served by {added.endpoint.path}.")


@finetunes.command("list")
def list_finetunes(organization: Owner = "local") -> None:
    """Show what an organization can use: its own, those shared with it, the official ones."""
    with sentences(), _registry() as registry:
        for finetune in registry.list(organization):
            precision = finetune.precision or "-"
            typer.echo(f"{finetune.id:<32} {finetune.weights:<14} {precision:<5} {finetune.source}")


@finetunes.command("show")
def show_finetune(
    finetune_id: FinetuneId,
    organization: Owner = "local",
    example: Annotated[str | None, typer.Option(help="Print a program instead: curl or python.")] = None,
) -> None:
    """Describe a finetune, or print an example that calls it."""
    with sentences():
        from lora_runtime.server.replies import show_finetune as describe
        from lora_runtime.settings import settings
        from lora_runtime.snippets import write_example

        with _registry() as registry:
            finetune = registry.find(organization, finetune_id)
            if example is None:
                for key, value in describe(finetune).items():
                    shown = ", ".join(map(str, value)) if isinstance(value, list) else value
                    typer.echo(f"{key.replace('_', ' '):<15} {'' if shown is None else shown}".rstrip())
                return
        if example not in ("curl", "python"):
            raise InvalidInput(f"Example: {quote(example)} is neither curl nor python.")
        chosen = settings()
        base_url = chosen.public_url or f"http://{chosen.host}:{chosen.port}"
        typer.echo(write_example(finetune, base_url.rstrip("/"), "curl" if example == "curl" else "python"))


@finetunes.command("edit")
def edit_finetune(
    finetune_id: FinetuneId,
    base: Base = None,
    precision: PrecisionName = None,
    trigger_phrase: Annotated[str | None, typer.Option(help='"" clears it.')] = None,
    strength: Annotated[
        str | None,
        typer.Option(help='The recommended one, which examples and the Playground begin with; "" clears it.'),
    ] = None,
    organization: Owner = "local",
) -> None:
    """Change base, precision, trigger phrase or recommended strength."""
    with sentences(), _registry() as registry:
        changed = registry.edit(
            organization, finetune_id, weights=base, precision=precision, trigger_phrase=trigger_phrase,
            recommended_strength=strength,
        )  # fmt: skip
    typer.echo(
        f"{changed.id} is served by {changed.endpoint.path}; trigger phrase: {changed.trigger_phrase or 'none'}; "
        f"recommended strength: {changed.recommended_strength or 'none'}."
    )


@finetunes.command("grant")
def grant_finetune(
    finetune_id: FinetuneId,
    to: Annotated[str, typer.Option(help="The organization that may use it.")],
    organization: Owner = "local",
) -> None:
    """Share a finetune with another organization. Whoever calls it pays."""
    with sentences(), _registry() as registry:
        granted = registry.grant(organization, finetune_id, to)
    typer.echo(f"{to} calls it {granted.full_name}.")


@finetunes.command("revoke")
def revoke_finetune(
    finetune_id: FinetuneId,
    to: Annotated[str, typer.Option(help="The organization that may use it no more.")],
    organization: Owner = "local",
) -> None:
    """Take a grant back."""
    with sentences(), _registry() as registry:
        registry.revoke(organization, finetune_id, to)
    typer.echo(f"{to} cannot use {finetune_id} any more.")


@finetunes.command("remove")
def remove_finetune(finetune_id: FinetuneId, organization: Owner = "local") -> None:
    """Delete a finetune. Tasks that were accepted go on; `restore` takes it back for a while."""
    with sentences(), _registry() as registry:
        removed = registry.remove(organization, finetune_id)
    typer.echo(f"{removed.id} was deleted. `finetunes restore {removed.name}` takes it back.")


@finetunes.command("restore")
def restore_finetune(finetune_id: FinetuneId, organization: Owner = "local") -> None:
    """Take a deletion back, grants included."""
    with sentences(), _registry() as registry:
        restored = registry.restore(organization, finetune_id)
    typer.echo(f"{restored.id} is served by {restored.endpoint.path} again.")


def pick_adapter(lora: str | None, adapter: str | None) -> "str | LoraRef | None":
    """Return the LoRA that is meant: what was typed, or the one adapter of its file that was named.

    Raises:
        InvalidInput: An adapter of nothing, or the file has none of that name.
        NotFound, LoraError: See `fetch_lora`.
    """
    if adapter is None:
        return lora
    if lora is None:
        raise InvalidInput("--adapter names an adapter in the file of --lora: give both.")
    from lora_runtime.registry.local import fetch_lora

    return fetch_lora(lora, adapter=adapter)


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Print an error of the project's tree on one line, and exit with status 1.

    Names of any script are printed to any terminal: what its encoding lacks is escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except KleinLabError as error:
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def _accounts() -> "Iterator[Accounts]":
    from lora_runtime.registry.accounts import Accounts
    from lora_runtime.settings import settings
    from lora_runtime.storage.database import Database

    with contextlib.closing(Database(settings().sqlalchemy_url())) as database:
        yield Accounts(database)


def _registry() -> "contextlib.AbstractContextManager[Finetunes]":
    from lora_runtime.registry.local import open_registry

    return open_registry()


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
