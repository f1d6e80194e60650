"""A run as something to vote on: which images stand against each other, blind copies of them, and what came of it.

A scene is a prompt and seed on one target; its contenders are the strengths of each LoRA (checkpoints of a training are
LoRAs, too), and strength 0 is one contender whatever the LoRA. Targets are apart, as a strength means something else
there. What a page or a command shows while somebody votes is in `Pair` and `read_blind`, and tells nothing.
"""

import io
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from PIL import Image

from evaluation.judge.metrics import SCORES
from evaluation.judge.votes import Agreement, Contest, Ranking, agree, rank
from evaluation.store.records import CellRecord, Vote
from evaluation.store.store import Store
from evaluation.strengths import exact
from lora_runtime.lora.names import tell_apart
from lora_runtime.values import LoraRef

MOST: Final = 60
"""Contenders of a contest, at most: more take thousands of votes, and seconds to count."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A LoRA at a strength, or the base model (None, 0).

    `lora` is a digest, `label` what people call the contender, `lora_label` what they call its LoRA.
    """

    lora: str | None
    strength: Decimal
    label: str
    lora_label: str = ""

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, kw_only=True)
class Count:
    """What the votes on a contest say; `agreements`: how often each score prefers the image that people took."""

    contest: Contest[Contender]
    ranking: Ranking[Contender] | None
    agreements: Mapping[str, Agreement]


def list_contests(records: Sequence[CellRecord]) -> tuple[Contest[Contender], ...]:
    """Return what can be voted on among the images of `records`: a contest for each target with two contenders."""
    loras = tuple(dict.fromkeys(lora for record in records if (lora := record.cell.request.lora)))
    names = {lora.sha256: lora.name for lora in tell_apart(loras)}
    found: dict[str, dict[tuple[object, ...], dict[Contender, str]]] = {}
    for record in records:
        request, target = record.cell.request, record.cell.target
        if record.image is None:
            continue
        scene = request.prompt, request.seed, request.width, request.height, request.steps, request.guidance
        images = found.setdefault(f"{target.weights} {target.precision}, {target.backend}", {}).setdefault(scene, {})
        images[_contender(request.lora, request.strength, names)] = record.cell.identity
    contests = (Contest(name=name, scenes=tuple(scenes.values())) for name, scenes in found.items())
    return tuple(contest for contest in contests if any(len(scene) > 1 for scene in contest.scenes))


def list_ballots(records: Sequence[CellRecord], *, kind: str = "LoRA") -> tuple[Contest[Contender], ...]:
    """Return the contests of `records`, and of each with several LoRAs its parts: which strength, which LoRA.

    `kind` is what these are called. One with too many contenders to be put in order by hand is offered by its parts
    alone.
    """
    found = []
    for contest in list_contests(records):
        everyone = tuple(dict.fromkeys(contest.contenders.values()))
        loras = {one.lora: one.lora_label for one in everyone if one.lora}
        strengths = sorted({one.strength for one in everyone if one.lora})
        parts = [_narrow(contest, f"{name}: which strength", loras=(lora, None)) for lora, name in loras.items()]
        parts += [_narrow(contest, f"{exact(each)}: which {kind}", strengths=(each,)) for each in strengths]
        parts = [part for part in parts if len(loras) > 1 and any(len(scene) > 1 for scene in part.scenes)]
        found += [*([contest] if len(everyone) <= MOST or not parts else []), *parts]
    return tuple(found)


def count_votes(store: Store, run_id: str) -> tuple[Count, ...]:
    """Return what the votes of a run's organization say about its images, wherever they were given.

    Raises:
        NotFound: There is no such run.
    """
    run, records = store.look(run_id)
    contests = list_contests(records)
    return tuple(
        count_contest(contest, records, store.votes(contest.contenders, organization=run.organization))
        for contest in contests
    )


def count_contest(contest: Contest[Contender], records: Sequence[CellRecord], votes: Sequence[Vote]) -> Count:
    """Return what votes say on one contest among the images of `records`, and how far their scores agree."""
    known = {record.cell.identity: record.scores for record in records}
    agreements = {}
    for name, score in SCORES.items():
        sign = 1 if score.higher_is_better else -1
        values = {image: sign * scores[name] for image, scores in known.items() if name in scores}
        if (found := agree(votes, values)).decided:
            agreements[name] = found
    return Count(contest=contest, ranking=rank(votes, contest.contenders), agreements=agreements)


def list_facts(count: Count) -> dict[str, Any]:
    """Return a contest and its votes as JSON: strengths are numbers; without votes, only how many there are."""
    ranking = count.ranking
    facts: dict[str, Any] = {"contest": count.contest.name, "votes": ranking.votes if ranking else 0}
    if ranking is not None:
        facts |= {
            "decided": ranking.decided,
            "neither": ranking.neither,
            "voters": dict(ranking.voters),
            "different": ranking.different,
            "p": ranking.p,
            "best": [str(contender) for contender in ranking.best],
            "sentence": ranking.sentence,
            "standings": [
                {
                    "contender": str(one.contender),
                    "lora_sha256": one.contender.lora,
                    "strength": float(one.contender.strength),
                    "skill": one.skill,
                    "low": one.low,
                    "high": one.high,
                    "votes": one.votes,
                }
                for one in ranking.standings
            ],
        }
    agreements = {name: {"agreed": found.agreed, "decided": found.decided} for name, found in count.agreements.items()}
    return {**facts, "agreements": agreements}


def read_blind(image: Path) -> bytes:
    """Return an image as a PNG without what its file tells: the cell in its metadata, its name, its time."""
    with Image.open(image) as file:
        data = io.BytesIO()
        Image.frombytes("RGB", file.size, file.convert("RGB").tobytes()).save(data, format="PNG", compress_level=1)
    return data.getvalue()


def _narrow(
    contest: Contest[Contender],
    name: str,
    *,
    loras: Container[str | None] | None = None,
    strengths: Container[Decimal] | None = None,
) -> Contest[Contender]:
    """The part of a contest that is between some LoRAs, or between all at some strengths; None is every one."""

    def takes_part(one: Contender) -> bool:
        return (loras is None or one.lora in loras) and (strengths is None or one.strength in strengths)

    scenes = ({one: image for one, image in scene.items() if takes_part(one)} for scene in contest.scenes)
    return Contest(name=f"{contest.name}: {name}", scenes=tuple(scenes))


def _contender(lora: LoraRef | None, strength: Decimal, names: Mapping[str, str]) -> Contender:
    """`names`: how a LoRA is called among the others, by its digest."""
    if lora is None or not strength:
        return Contender(lora=None, strength=Decimal(0), label="0 (base)")
    name = names[lora.sha256]
    label = f"{name} {exact(strength)}" if len(names) > 1 else exact(strength)
    return Contender(lora=lora.sha256, strength=strength, label=label, lora_label=name)
