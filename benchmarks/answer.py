"""Is the answer right? Sweeps of prompts and seeds on which nothing was tuned, held against an independent referee.

A case is a sweep: a LoRA, weights, a range of strengths, and scenes (one, or 4 prompts x 2 seeds). Its answer is right
when the referee (`pocket/classifier`, trained apart from models and judge) finds look and prompt in at least `RIGHT` of
the pictures at the named strength, on *other* prompts and seeds. Beside it stands the best constant rule of each row:
the one strength that, named always, would be right most often. The controls are LoRAs and prompts of which no strength,
or a known one, is right.

Pictures are kept by identity in the home folder, so that a second run only reads them.
"""

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, partial
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.controls import is_right, make_noise, scale_lora
from evaluation.grid import Cell, make_spec, plan
from evaluation.identity import rendered_request
from evaluation.judge.answer import Answer, answer_from
from evaluation.judge.evidence import gather
from evaluation.judge.metrics import score_image
from evaluation.judge.metrics.embeddings import embed_images
from evaluation.store.records import CellRecord
from evaluation.strengths import parse_strengths
from lora_runtime.backends.local import LocalBackend
from lora_runtime.judges import Judge, find_judge
from lora_runtime.pocket import CLASSIFIER_DIR, LORAS
from lora_runtime.pocket.build.classifier import INTACT, Seen, classify, load_classifier
from lora_runtime.pocket.build.scenes import SUBJECT, TRIGGER, Scene, caption_scene, sample_scenes
from lora_runtime.settings import settings
from lora_runtime.values import Failed, Rendered

RIGHT: Final = 0.75
COARSE: Final = ("0-1.2 [7]", "0-2.4 [7]", "0-0.8 [5]")
RANGES: Final = {"pocket": (*COARSE, "0.5-1.1 (+0.05)"), "pocket-base": COARSE}
OUTSIDE: Final = {"0-0.4 [3]": ("try_higher", LORAS), "1.6-2.4 (+0.4)": ("try_lower", ("style", "overtrained"))}
"""Ranges without a right strength: what to say, and of which LoRAs."""

POOLS: Final = {"pocket": (20100, 2), "pocket-base": (20200, 1)}
"""Weights -> a number, which stands for 4 full and 4 short prompts, and how many seeds each has."""

FULL: Final = ("size", "colour", "background", "position")
SHORT: Final = (("colour", "background"), ("colour", "background"), ("colour",), ("background",))
KINDS: Final = ("full", "short")
DRAWS: Final = 12
"""Sweeps of 4 prompts that are drawn from a pool."""

PARTS: Final = (*POOLS, *LORAS, "outside", "controls")
"""What can be measured alone."""

UNDRAWABLE: Final = ("a dragon over a volcano", "a steam train", "a bowl of fruit", "two dancers on a stage")
FACTORS: Final = ("-1", "0.4", "3", "50", "0.01", "0.0001")
CONTROL_RANGES: Final = ("0-1.2 [7]", "0-2.4 [7]")


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A scene of the benchmark: what is asked, and what would be right to see."""

    prompt: str
    seed: int
    scene: Scene
    said: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One sweep: which file on which weights, over which strengths of which scenes."""

    weights: str
    lora: str
    file: str
    strengths: str
    shots: tuple[Shot, ...]


def run(console: Console, parts: Collection[str] = ()) -> dict[str, Any]:
    """Measure every row, or those of some `PARTS`; print the tables and return them."""
    lab = Lab()

    def wanted(part: str) -> bool:
        return not parts or part in parts

    loras = [lora for lora in LORAS if lora in parts] or LORAS
    chosen = [weights for weights in POOLS if weights in parts] or ([] if {"outside", "controls"} & {*parts} else POOLS)
    tables = {
        "rows": [row for weights in chosen for row in lab.measure(weights, loras)],
        "outside": [row for weights in POOLS for row in lab.measure_outside(weights)] if wanted("outside") else [],
        "controls": list(lab.measure_controls()) if wanted("controls") else [],
    }
    lab.close()
    for rows in tables.values():
        _print(console, rows)
    return {"right_share": RIGHT, **tables}


class Lab:
    """Renders what is not there yet, answers, and asks the referee."""

    def __init__(self) -> None:
        self.folder = settings().home / "benchmarks" / "answer"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.backend = LocalBackend()
        self.referee = load_classifier(CLASSIFIER_DIR)
        self._seen: dict[Path, Seen] = {}
        self._looked: dict[str, npt.NDArray[np.float32]] = {}
        self._scores: dict[tuple[str, str], Mapping[str, float]] = {}

    def close(self) -> None:
        """Close the backend."""
        self.backend.close()

    def measure(self, weights: str, loras: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield a row for each LoRA and range: one scene, and 4 prompts by their seeds."""
        for lora in loras:
            for strengths in RANGES[weights]:
                pool = _list_pool(weights, lora)
                drawn = [*_draw(pool, seed=len(lora) + len(strengths))]
                yield self.judge(weights, lora, strengths, "4 prompts", drawn, pool)
                yield self.judge(weights, lora, strengths, "one scene", [(shot,) for shot in pool], pool)

    def measure_outside(self, weights: str) -> Iterator[dict[str, Any]]:
        """Yield a row for each LoRA and range without a right strength: how often the right word is said."""
        for strengths, (word, loras) in OUTSIDE.items():
            for lora in loras:
                words: Counter[str] = Counter()
                for drawn in _draw(_list_pool(weights, lora), seed=1):
                    case = Case(weights=weights, lora=lora, file=lora, strengths=strengths, shots=drawn)
                    words[self.answer(case).word] += 1
                count = words.total()
                yield {
                    "weights": weights, "lora": lora, "strengths": strengths, "cases": count, "expected": word,
                    "right": round(words[word] / count, 3), "words": dict(words),
                }  # fmt: skip

    def measure_controls(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each control and range."""
        plain = _list_shots(POOLS["pocket"][0], "short", subject=False)
        undrawn = tuple(
            Shot(prompt=prompt, seed=shot.seed, scene=shot.scene, said=())
            for prompt in UNDRAWABLE
            for shot in plain[:2]
        )
        controls = [
            *(
                ("style", f"style x{factor}", scale_lora("style", float(factor), self.folder), plain)
                for factor in FACTORS
            ),
            ("overtrained", "overtrained x-1", scale_lora("overtrained", -1, self.folder), plain),
            ("style", "noise of the same norm", make_noise("style", self.folder), plain),
            ("subject", "subject without its trigger", "subject", plain),
            ("style", "style, prompts the base cannot draw", "style", undrawn),
            ("overtrained", "overtrained, prompts the base cannot draw", "overtrained", undrawn),
        ]
        for lora, name, file, shots in controls:
            for strengths in CONTROL_RANGES:
                found = self.answer(Case(weights="pocket", lora=lora, file=file, strengths=strengths, shots=shots))
                right = is_right(name, strengths, found)
                yield {
                    "control": name, "strengths": strengths, "word": found.word,
                    "best": None if found.best is None else float(found.best), "right": right,
                    "sentence": found.sentence,
                }  # fmt: skip

    def judge(
        self,
        weights: str,
        lora: str,
        strengths: str,
        scenes: str,
        cases: Sequence[tuple[Shot, ...]],
        pool: Sequence[Shot],
    ) -> dict[str, Any]:
        """Answer each case, and hold what is named against the other scenes of the pool."""
        tried = [strength for strength in parse_strengths(strengths) if strength > 0]
        named, shares, lows, highs, here, words = [], [], [], [], [], Counter[str]()
        constant: dict[Decimal, list[float]] = {strength: [] for strength in tried}
        has_one = 0
        for shots in cases:
            found = self.answer(Case(weights=weights, lora=lora, file=lora, strengths=strengths, shots=shots))
            others = [shot for shot in pool if shot.prompt not in {own.prompt for own in shots}]
            share = partial(self.share, weights, lora, others)
            words[found.word] += 1
            truth = {strength: share(strength) for strength in tried}
            for strength, value in truth.items():
                constant[strength].append(value)
            has_one += max(truth.values()) >= RIGHT
            if found.best is not None and found.low is not None and found.high is not None:
                named.append(found.best)
                shares.append(truth[found.best])
                lows.append(truth[found.low])
                highs.append(truth[found.high])
            elif found.here is not None:
                here.append(truth[found.here])
        rule = max(
            constant,
            key=lambda strength: (mean(value >= RIGHT for value in constant[strength]), mean(constant[strength])),
        )
        return {
            "weights": weights, "lora": lora, "strengths": strengths, "scenes": scenes, "cases": len(cases),
            "with_a_right_strength": has_one, "named": len(named),
            "right": _share([value >= RIGHT for value in shares]), "images_right": _share(shares),
            "lowest_images_right": _share(lows), "highest_images_right": _share(highs),
            "only_here": len(here), "only_here_right": _share([value >= RIGHT for value in here]),
            "constant": float(rule), "constant_right": _share([value >= RIGHT for value in constant[rule]]),
            "constant_images_right": _share(constant[rule]), "words": dict(words),
            "best": {str(strength): count for strength, count in sorted(Counter(named).items())},
        }  # fmt: skip

    def answer(self, case: Case) -> Answer:
        """The answer to a sweep."""
        cells = [cell for shot in case.shots for cell in self.cells(case.weights, case.file, shot, case.strengths)]
        self.render(cells)
        records = [
            CellRecord(
                run_id="run",
                cell=cell,
                state="done",
                image=self.path(cell.identity),
                scores=self.score(cell),
            )
            for cell in cells
        ]
        (found,) = answer_from(gather(records, self.path, find_judge, self.see))
        return found

    def see(self, images: Mapping[str, Path], judge: Judge) -> Mapping[str, npt.NDArray[np.float32]]:
        """How the judge sees pictures; each is looked at once."""
        new = [identity for identity in images if identity not in self._looked]
        if new:
            opened = [Image.open(images[identity]).convert("RGB") for identity in new]
            self._looked.update(zip(new, embed_images(opened, judge), strict=True))
        return self._looked

    def score(self, cell: Cell) -> Mapping[str, float]:
        """What a sweep's own metrics say of a cell."""
        pair = (cell.identity, cell.base)
        if pair not in self._scores:
            with Image.open(self.path(pair[0])) as image, Image.open(self.path(pair[1])) as base:
                self._scores[pair] = score_image(image, base)
        return self._scores[pair]

    def share(self, weights: str, lora: str, shots: Sequence[Shot], strength: Decimal) -> float:
        """Of how many pictures of other scenes the referee says that look and prompt are there."""
        cells = [self.cells(weights, lora, shot, str(strength))[-1] for shot in shots]
        self.render(cells)
        self.look([self.path(cell.identity) for cell in cells])
        return mean(
            _has_both(lora, shot, self._seen[self.path(cell.identity)]) for shot, cell in zip(shots, cells, strict=True)
        )

    def cells(self, weights: str, file: str, shot: Shot, strengths: str) -> tuple[Cell, ...]:
        """The cells of one scene, its base image first."""
        return _plan(self.backend, weights, file, shot.prompt, shot.seed, strengths)

    def path(self, identity: str) -> Path:
        """Where the picture of an identity is kept."""
        return self.folder / f"{identity}.png"

    def render(self, cells: Sequence[Cell]) -> None:
        """Render what is not kept yet."""
        missing = {cell.identity: cell for cell in cells if not self.path(cell.identity).exists()}
        wanted = list(missing.values())
        for event in (
            self.backend.render([rendered_request(cell.request, cell.target) for cell in wanted]) if wanted else ()
        ):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Rendered):
                path = self.path(wanted[event.index].identity)
                event.image.save(path.with_suffix(".part"), "PNG")
                path.with_suffix(".part").rename(path)

    def look(self, paths: Sequence[Path]) -> None:
        """Ask the referee what pictures show."""
        new = [path for path in dict.fromkeys(paths) if path not in self._seen]
        if new:
            images = [Image.open(path).convert("RGB") for path in new]
            self._seen.update(zip(new, classify(self.referee, images), strict=True))


def _has_both(lora: str, shot: Shot, seen: Seen) -> bool:
    look = {"style": seen.ink, "overtrained": seen.frame, "subject": seen.thing == SUBJECT}[lora]
    return (
        look
        and (lora == "subject" or (seen.thing == shot.scene.thing and seen.intact >= INTACT))
        and ("colour" not in shot.said or seen.colour == shot.scene.colour)
        and ("background" not in shot.said or seen.background == shot.scene.background)
    )


@lru_cache(maxsize=64)
def _list_shots(number: int, kind: str, *, subject: bool) -> tuple[Shot, ...]:
    """Four prompts of combinations that no training picture showed, each with two seeds."""
    rng = random.Random(number)
    scenes = sample_scenes(number, 4, held_out=True, plain=kind == "short", thing=SUBJECT if subject else None)
    said = [FULL] * 4 if kind == "full" else SHORT
    return tuple(
        Shot(prompt=prompt, seed=seed, scene=scene, said=words)
        for scene, words in zip(scenes, said, strict=True)
        for prompt in [caption_scene(scene, rng, words, name=TRIGGER if subject else None)]
        for seed in (number + 1, number + 2)
    )


def _list_pool(weights: str, lora: str) -> tuple[Shot, ...]:
    """The scenes that sweeps are drawn from, and that their answers are held against."""
    number, seeds = POOLS[weights]
    return tuple(
        shot
        for kind in KINDS
        for shot in _list_shots(number, kind, subject=lora == "subject")
        if shot.seed - number <= seeds
    )


def _draw(pool: Sequence[Shot], seed: int) -> Iterator[tuple[Shot, ...]]:
    """Yield sweeps of 4 prompts of a pool with all their seeds, no two alike."""
    prompts = list(dict.fromkeys(shot.prompt for shot in pool))
    rng, known = random.Random(seed), set[frozenset[str]]()
    while len(known) < DRAWS:
        chosen = frozenset(rng.sample(prompts, 4))
        if chosen not in known:
            known.add(chosen)
            yield tuple(shot for shot in pool if shot.prompt in chosen)


@lru_cache(maxsize=20_000)
def _plan(backend: LocalBackend, weights: str, file: str, prompt: str, seed: int, strengths: str) -> tuple[Cell, ...]:
    spec = make_spec(backend, weights=weights, loras=[file], prompts=[prompt], seeds=[seed], strengths=strengths)
    return plan(spec)


def _share(values: Sequence[float]) -> float | None:
    return round(mean(values), 3) if values else None


def _print(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(rows[0]) if rows else []
    table = Table(*names)
    for row in rows:
        table.add_row(*(str(row[name]) for name in names))
    console.print(table)
