"""What a sweep shows of each strength: of how many scenes it passes which test, each held against a null of its own.

The unit is the scene, one prompt with one seed, against its own base image (strength 0). The tests:

*acts*: the picture differs from the base image by more than rounding does, and by more the higher the strength.
*prompt*: its words fit it better than contrasting ones (`contrast.py`). A scene whose base image fails that counts for
nothing.
*intact*: it is still nearest to its own base image among those of all prompts, and it has not grown like the pictures
of other prompts, as those of a memorised picture do. That takes two prompts and no model.
*like*: where pictures of the look are given, it is nearer to them than the base image of any scene is.

Images count once, whatever runs show them; a scene that failed or waits makes n smaller.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import mean, median
from typing import Final, TypeAlias

import numpy as np
from PIL import Image
from scipy.stats import binomtest

from evaluation.judge.alike import See, count_copied, find_like, measure_alike
from evaluation.judge.contrast import KEPT, ask, measure_margins
from evaluation.judge.metrics.mean_difference import measure_mean_difference
from evaluation.judge.metrics.ssim import measure_ssim
from evaluation.judge.people import People, hear
from evaluation.store.records import CellRecord, Vote
from evaluation.trigger import has_trigger, remove_trigger
from lora_runtime.catalogue import find_weights
from lora_runtime.judges import Judge, find_eye
from lora_runtime.values import LoraRef, Precision

FLOOR: Final = 1.0
"""Mean difference to the base image (of 255) up to which kernels may round, with another batch or device."""

GROWTH: Final = 1.5
"""How many times the change at the lowest strength the highest one must show, where both are barely above the floor."""

VISIBLE: Final = 0.165
"""Fall of SSIM from which a look is seen: below it the three bundled LoRAs show nothing of theirs, above it they do."""

HOLDS: Final = 0.6
"""The share of scenes that a strength must keep, or be like the look in: 5 of 8, 3 of 4."""

ALIKE: Final = 0.7
"""Share of the way from as unlike as two base images to the same picture, from which two pictures have grown alike."""

FindJudge: TypeAlias = Callable[[str], Judge | None]

FindImage: TypeAlias = Callable[[str], Path | None]
"""The file of an identity's image."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """`passed` of `of` scenes."""

    passed: int
    of: int

    @property
    def share(self) -> float:
        """The share itself; 0 when there is no scene."""
        return self.passed / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% Wilson interval of the share; everything, when there is no scene."""
        if not self.of:
            return 0.0, 1.0
        found = binomtest(self.passed, self.of).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True, kw_only=True, order=True)
class Scene:
    """One prompt with one seed."""

    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A scene at one strength. A test is None where there was nothing to hold the picture against."""

    scene: Scene
    strength: Decimal
    change: float
    """1 - SSIM to the base image."""
    difference: float
    """Mean difference of channel values to the base image."""
    acts: bool
    prompt: bool | None
    intact: bool | None
    like: bool | None = None

    @property
    def holds(self) -> bool:
        """Whether the scene is still there: no test that could be made says that it is not."""
        return self.prompt is not False and self.intact is not False


@dataclass(frozen=True, kw_only=True)
class Point:
    """All that is known of one strength."""

    strength: Decimal
    trials: tuple[Trial, ...]

    @cached_property
    def change(self) -> float:
        """How far the pictures are from their base images, in the middle."""
        return median(trial.change for trial in self.trials)

    @property
    def holds(self) -> Share:
        """In how many scenes prompt and picture are still there."""
        return self._count(lambda trial: trial.holds)

    @property
    def passes(self) -> Share:
        """How many scenes pass every test."""
        return self._count(lambda trial: trial.holds and trial.acts and trial.like is not False)

    @property
    def kept(self) -> bool:
        """Whether most scenes are still there."""
        return self.holds.share >= HOLDS

    @property
    def seen(self) -> bool:
        """Whether the look is there: most pictures are like those given of it; without any, they have changed."""
        like = self.tally("like")
        return like.share >= HOLDS if like.of else self.change >= VISIBLE

    def tally(self, test: str) -> Share:
        """How many scenes pass one test, of those that could be tested."""
        found = [getattr(trial, test) for trial in self.trials if getattr(trial, test) is not None]
        return Share(passed=sum(found), of=len(found))

    def _count(self, counts: Callable[[Trial], bool]) -> Share:
        return Share(passed=sum(map(counts, self.trials)), of=len(self.trials))


@dataclass(frozen=True, kw_only=True)
class Value:
    """One value of a sweep's axis: what a strength is judged for. Strengths of two values are never pooled."""

    lora: LoraRef
    weights: str
    precision: Precision
    backend: str
    trigger: bool | None
    """Whether the prompts have the LoRA's trigger phrase; None when it has none."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was found for one value of the axis; `points` by strength, without strength 0.

    `scenes` were judged; `undrawn` are those whose base image does not show the prompt, `missing` counts pictures that
    failed, wait, or have no base image. `judge` is None when there is none, and prompts could not be judged.
    `likeness` is how many pictures of the look were given, `copied` how many pictures of the sweep are one of them.
    """

    value: Value
    points: tuple[Point, ...]
    scenes: tuple[Scene, ...]
    undrawn: tuple[Scene, ...]
    missing: int
    judge: str | None
    people: People = field(default_factory=People)
    likeness: int = 0
    copied: int = 0

    @property
    def prompts(self) -> int:
        """How many different prompts were judged."""
        return len({scene.prompt for scene in self.scenes})


@dataclass(frozen=True, kw_only=True)
class _Shot:
    """One picture of a scene, and its base image."""

    identity: str
    base_identity: str
    scene: Scene
    strength: Decimal
    image: Path
    base: Path
    scores: Mapping[str, float]


def gather(
    records: Sequence[CellRecord],
    find_image: FindImage,
    find_judge: FindJudge,
    see: See,
    votes: Sequence[Vote] = (),
    find_eye: FindJudge = find_eye,
) -> tuple[Evidence, ...]:
    """Return the evidence for each value of the axis; of cells whose run is not red. `votes` are those on their images.

    Raises:
        InvalidInput, Unavailable: The judge cannot be loaded.
    """
    groups: dict[Value, list[CellRecord]] = {}
    for record in records:
        if (value := find_value(record)) is not None:
            groups.setdefault(value, []).append(record)
    return tuple(
        _judge(value, own, find_image, find_judge(value.weights), find_eye, see, votes) for value, own in groups.items()
    )


def find_value(record: CellRecord) -> Value | None:
    """Return which value of the axis a cell belongs to; None without a LoRA, and for every cell of a red run."""
    request, target = record.cell.request, record.cell.target
    lora = request.lora
    if lora is None or record.red:
        return None
    phrase = lora.trigger_phrase
    return Value(
        lora=lora,
        weights=target.weights,
        precision=target.precision,
        backend=target.backend,
        trigger=has_trigger(request.prompt, phrase) if phrase else None,
    )


def tell_apart(values: Sequence[Value]) -> list[str]:
    """Call each value by its LoRA, and by what else tells it from the others."""
    several = {
        name: len({getattr(value, name) for value in values}) > 1 for name in ("weights", "precision", "backend")
    }
    labels = []
    for value in values:
        words = [value.lora.name]
        words += [find_weights(value.weights).label] if several["weights"] else []
        words += [getattr(value, name) for name in ("precision", "backend") if several[name]]
        if len({each.trigger for each in values if each.lora == value.lora}) > 1:
            words.append("with the trigger phrase" if value.trigger else "without the trigger phrase")
        labels.append(" · ".join(words))
    return labels


def _judge(
    value: Value,
    records: Sequence[CellRecord],
    find_image: FindImage,
    judge: Judge | None,
    find_eye: FindJudge,
    see: See,
    votes: Sequence[Vote],
) -> Evidence:
    shots, missing = _shoot(records, find_image)
    scenes = tuple(sorted({shot.scene for shot in shots}))
    shown = _judge_prompts(value, shots, scenes, judge, see) if judge else {}
    undrawn = tuple(scene for scene in scenes if judge and shown.get(_key(scene, Decimal(0))) is False)
    judged = [shot for shot in shots if shot.scene not in undrawn]
    intact = _judge_intact(judged)
    acts = _judge_acts(judged)
    images, bases = {shot.identity: shot.image for shot in judged}, {shot.base_identity: shot.base for shot in judged}
    given = dict.fromkeys(picture for record in records for picture in record.cell.likeness)
    looks = tuple(picture for picture in given if picture.path.exists())
    eye = find_eye(value.weights) if looks and judged else None
    like = find_like(images, bases, looks, eye, see) if eye else None
    trials = [
        Trial(
            scene=shot.scene,
            strength=shot.strength,
            change=_change(shot),
            difference=_difference(shot),
            acts=acts[_key(shot.scene, shot.strength)],
            prompt=shown.get(_key(shot.scene, shot.strength)),
            intact=intact.get(_key(shot.scene, shot.strength)),
            like=None if like is None else shot.identity in like,
        )
        for shot in sorted(judged, key=lambda shot: (shot.strength, shot.scene))
    ]
    return Evidence(
        value=value,
        points=tuple(
            Point(strength=strength, trials=tuple(same))
            for strength, same in groupby(trials, key=lambda trial: trial.strength)
        ),
        scenes=tuple(scene for scene in scenes if scene not in undrawn),
        undrawn=undrawn,
        missing=missing,
        judge=judge.id if judge else None,
        people=hear(records, votes),
        likeness=len(looks),
        copied=count_copied(images, looks),
    )


def _shoot(records: Sequence[CellRecord], find_image: FindImage) -> tuple[list[_Shot], int]:
    """The pictures that can be judged, each once; and how many are missing."""
    shots: dict[str, _Shot] = {}
    missing = set()
    for record in records:
        request = record.cell.request
        if not request.strength:
            continue
        base = find_image(record.cell.base)
        if record.image is None or base is None:
            missing.add(record.cell.identity)
            continue
        shots[record.cell.identity] = _Shot(
            identity=record.cell.identity,
            base_identity=record.cell.base,
            scene=Scene(prompt=request.prompt, seed=request.seed),
            strength=request.strength,
            image=record.image,
            base=base,
            scores=record.scores,
        )
    return list(shots.values()), len(missing - shots.keys())


def _judge_prompts(
    value: Value, shots: Sequence[_Shot], scenes: Sequence[Scene], judge: Judge, see: See
) -> dict[tuple[Scene, Decimal], bool]:
    """Whether each picture shows its prompt; at strength 0, whether the base image does. The trigger is no word."""
    phrase = value.lora.trigger_phrase
    said = {scene: remove_trigger(scene.prompt, phrase) if phrase else scene.prompt for scene in scenes}
    seen = see({shot.base_identity: shot.base for shot in shots} | {shot.identity: shot.image for shot in shots}, judge)
    found = {}
    for scene in scenes:
        own = [shot for shot in shots if shot.scene == scene]
        question = ask(said[scene], [said[other] for other in scenes if said[other] != said[scene]], judge)
        if question is None:
            continue
        vectors = np.stack([seen[own[0].base_identity], *(seen[shot.identity] for shot in own)])
        base, *margins = measure_margins(vectors, question.texts, judge)
        found[_key(scene, Decimal(0))] = base >= question.drawn
        for shot, margin in zip(own, margins, strict=True):
            found[_key(scene, shot.strength)] = margin >= KEPT
    return found


def _judge_acts(shots: Sequence[_Shot]) -> dict[tuple[Scene, Decimal], bool]:
    """Whether each picture differs from its base image by more than rounding, and the scene's change grows."""
    found = {}
    for scene in {shot.scene for shot in shots}:
        own = sorted((shot for shot in shots if shot.scene == scene), key=lambda shot: abs(shot.strength))
        low, high = _difference(own[0]), _difference(own[-1])
        # What changes much from the start need not grow: a LoRA far too strong destroys at every strength.
        grows = len(own) == 1 or high >= GROWTH * low or low >= 10 * FLOOR
        for shot in own:
            found[_key(scene, shot.strength)] = grows and _difference(shot) > FLOOR
    return found


def _judge_intact(shots: Sequence[_Shot]) -> dict[tuple[Scene, Decimal], bool]:
    """Whether each picture is still its own; nothing where there is no picture of another prompt beside it."""
    bases = {shot.scene: shot.base for shot in shots}
    found = {}
    for shot in shots:
        others = {scene: base for scene, base in bases.items() if scene.prompt != shot.scene.prompt}
        if not others:
            continue
        own = measure_alike(shot.image, shot.base)
        is_own = own > max(measure_alike(shot.image, base) for base in others.values())
        beside = [other for other in shots if other.strength == shot.strength and other.scene in others]
        found[_key(shot.scene, shot.strength)] = is_own and not _grew_alike(shot, beside)
    return found


def _grew_alike(shot: _Shot, beside: Sequence[_Shot]) -> bool:
    """Whether a picture is like those of other prompts, by far more than their base images are alike."""
    if not beside:
        return False
    shares = []
    for other in beside:
        before = measure_alike(shot.base, other.base)
        shares.append((measure_alike(shot.image, other.image) - before) / max(1 - before, 0.05))
    return mean(shares) >= ALIKE


def _change(shot: _Shot) -> float:
    known = shot.scores.get("ssim")
    return 1 - (measure_ssim(*_open_both(shot.image, shot.base)) if known is None else known)


def _difference(shot: _Shot) -> float:
    known = shot.scores.get("mean_difference")
    return measure_mean_difference(*_open_both(shot.image, shot.base)) if known is None else known


def _key(scene: Scene, strength: Decimal) -> tuple[Scene, Decimal]:
    return scene, strength


def _open_both(first: Path, second: Path) -> tuple[Image.Image, Image.Image]:
    with Image.open(first) as one, Image.open(second) as other:
        return one.convert("RGB"), other.convert("RGB")
