"""The commands of blind votes: `vote` asks for them, `votes` says what came of them.

While somebody votes, two files called left.png and right.png change under an image viewer that shows them; nothing on
the screen or in the files tells which strength they are. What they were is said at the end.
"""

import json
import random
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from evaluation.commands import WIDTH, open_store
from lora_runtime.commands import sentences
from lora_runtime.errors import InvalidInput
from lora_runtime.written import count_of

if TYPE_CHECKING:
    from evaluation.judge.ballot import Contender
    from evaluation.judge.votes import Contest, Pair
    from evaluation.store.store import Store

KEYS: Final = {"l": "left", "r": "right", "t": "tie", "n": "neither"}
STOP: Final = "q"

RunId = Annotated[str, typer.Argument(help="The run's id; `runs` lists them.")]


def vote(
    run: RunId,
    voter: Annotated[str, typer.Option(help="Your name, to stand with your votes.")] = "local",
    out: Annotated[Path, typer.Option(help="Folder of left.png and right.png, for a viewer beside this.")] = Path(
        "vote"
    ),
    seed: Annotated[int | None, typer.Option(help="Repeat the same draws of sides and order.")] = None,
) -> None:
    """Choose between two images of one scene, again and again, without knowing which is which; q ends it."""
    with sentences(), open_store() as store:
        from evaluation.judge.ballot import list_contests

        logged, records = store.look(run)
        contests = list_contests(records)
        if not contests:
            raise InvalidInput(f"Run {run} has no scene with two images to choose between. Resume it, then vote.")
        rng = random.Random(seed)
        typer.echo(f"Open {out / 'left.png'} and {out / 'right.png'} side by side.")
        given = 0
        while (outcome := _ask(store, rng.choice(contests), out, rng, logged.organization, voter)) is not None:
            given += outcome
        typer.echo(f"{count_of(given, 'vote')} by {voter}.")
    _print(run)


def votes(
    run: RunId,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say which strengths people chose when they did not know which was which, and whether scores agree with them."""
    if not as_json:
        _print(run)
        return
    with sentences(), open_store() as store:
        from evaluation.judge.ballot import count_votes, list_facts

        facts = [list_facts(count) for count in count_votes(store, run)]
        typer.echo(json.dumps({"votes": facts}, ensure_ascii=False))


def _ask(
    store: "Store", contest: "Contest[Contender]", out: Path, rng: random.Random, organization: str, voter: str
) -> int | None:
    """Ask for one vote and keep it; returns how many were given, None when somebody wants no more."""
    from evaluation.judge.votes import pick_pair

    pair = pick_pair(contest, store.votes(contest.contenders, organization=organization), rng)
    if pair is None:
        return None
    _show(store, pair, out)
    said = typer.prompt("l = left, r = right, t = tie, n = neither, q = end").strip().lower()
    if said == STOP:
        return None
    if said not in KEYS:
        typer.echo(f"{said!r} is none of {', '.join((*KEYS, STOP))}.", err=True)
        return 0
    store.vote(pair.left, pair.right, KEYS[said], voter=voter, organization=organization)  # type: ignore[arg-type]
    return 1


def _show(store: "Store", pair: "Pair", out: Path) -> None:
    from evaluation.judge.ballot import read_blind
    from evaluation.report.files import write_file

    out.mkdir(parents=True, exist_ok=True)
    for side, identity in (("left", pair.left), ("right", pair.right)):
        image = store.image(identity)
        if image is None:
            raise InvalidInput("An image of this run was deleted meanwhile. Resume the run, then vote.")
        write_file(out / f"{side}.png", read_blind(image.path))


def _print(run: str) -> None:
    with sentences(), open_store() as store:
        from evaluation.judge.ballot import count_votes
        from evaluation.judge.metrics import SCORES

        counts = count_votes(store, run)
        for count in counts:
            if len(counts) > 1:
                typer.echo(f"\n{count.contest.name}")
            if count.ranking is None:
                typer.echo("No votes yet. `python -m evaluation vote RUN` asks for some.")
                continue
            typer.echo(textwrap.fill(count.ranking.sentence, WIDTH))
            typer.echo(f"{'strength':<24}{'skill':>8}{'95%':>18}{'votes':>8}")
            for one in count.ranking.standings:
                interval = f"{one.low:+.1f} to {one.high:+.1f}"
                typer.echo(f"{one.contender!s:<24}{one.skill:>+8.1f}{interval:>18}{one.votes:>8}")
            people = ", ".join(f"{name} ({number})" for name, number in count.ranking.voters.items())
            typer.echo(f"voted: {people}; neither: {count.ranking.neither}")
            for name, found in count.agreements.items():
                typer.echo(
                    f"{SCORES[name].label}: better for the image taken in {found.agreed} of {found.decided} votes"
                )
