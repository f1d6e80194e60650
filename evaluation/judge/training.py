"""Which checkpoint of a training run to use, and at which strength: from the answers of its checkpoints.

Each checkpoint has an answer of its own, from the same evidence as any LoRA. The one whose best strength is surest to
hold is taken: the highest lower end of the interval of scenes that pass; of equals the earlier, as more training only
copies more. A checkpoint *copies* when at every strength at which it is seen most scenes are no longer their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.axes import Training
from evaluation.judge.answer import Answer, Word, find_answer
from evaluation.judge.evidence import HOLDS, VISIBLE, Point
from evaluation.store.records import CellRecord
from evaluation.strengths import exact

_NEAREST: Final[tuple[Word, ...]] = (
    "cannot_tell", "try_higher", "rebound", "try_lower", "no_strength_does_both", "base_does_not_draw_this",
    "does_nothing", "only_negative",
)  # fmt: skip
"""Whose answer is told where no checkpoint is named: that which comes nearest to one."""


@dataclass(frozen=True, kw_only=True)
class TrainingAnswer:
    """What a training run comes to. `chosen` is the answer of the checkpoint that is named, None where none is.

    `copies_from` is the checkpoint after it from which on all only copy what they were trained on.
    """

    name: str
    word: Word
    sentence: str
    checkpoint: str | None = None
    chosen: Answer | None = None
    copies_from: str | None = None
    lines: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, object]:
        """The answer as programs read it."""
        chosen = self.chosen.facts if self.chosen else {}
        return {
            "name": self.name,
            "word": self.word,
            "checkpoint": self.checkpoint,
            "strength": chosen.get("best"),
            **{name: chosen.get(name) for name in ("lora", "low", "high", "passed", "scenes", "interval")},
            "copies_from": self.copies_from,
            "sentence": self.sentence,
        }


def answer_training(training: Training | None, answers: Sequence[Answer]) -> TrainingAnswer | None:
    """Return the answer of a training run from those of its checkpoints; None where there is nothing to answer."""
    if training is None or not answers:
        return None
    stages = {stage.sha256: place for place, stage in enumerate(training.stages) if stage.sha256}
    ordered = sorted(answers, key=lambda answer: stages.get(answer.value.lora.sha256, len(stages)))
    named = [answer for answer in ordered if answer.word == "use"]
    lines = tuple(f"{training.label(answer.value.lora)}: {answer.sentence}" for answer in ordered)
    problems = tuple(f"{stage.label} was not rendered. {stage.problem}" for stage in training.stages if stage.problem)
    if not named:
        nearest = _find_nearest(ordered)
        return TrainingAnswer(
            name=training.name,
            word=nearest.word,
            sentence=f"No checkpoint is named. {training.label(nearest.value.lora)}: {nearest.sentence}",
            lines=(*lines, *problems),
        )
    chosen = max(named, key=lambda answer: answer.interval[0] if answer.interval else 0.0)
    copying = _find_copying(ordered[ordered.index(chosen) + 1 :])
    copied = f" From {training.label(copying.value.lora)} on the checkpoints only copy." if copying else ""
    return TrainingAnswer(
        name=training.name,
        word="use",
        sentence=_recommend(training, chosen) + copied,
        checkpoint=training.label(chosen.value.lora),
        chosen=chosen,
        copies_from=training.label(copying.value.lora) if copying else None,
        lines=(*lines, *([_say_copies(training, copying)] if copying else ()), *problems),
    )


def list_named(
    training: Training | None, records: Sequence[CellRecord], answers: Sequence[Answer]
) -> tuple[tuple[Answer, CellRecord], ...]:
    """Return the answers that name a strength, each with the first cell that shows it; the named checkpoint first."""
    told = answer_training(training, answers)
    chosen = told.chosen if told else None
    found = []
    for answer in sorted(answers, key=lambda each: each is not chosen):
        shown = [record for record in records if find_answer(record, answers) is answer]
        found += [(answer, record) for record in shown if record.cell.request.strength == answer.best][:1]
    return tuple(found)


def say_facts(training: Training, answers: Sequence[Answer]) -> list[dict[str, object]]:
    """Return the answers of the checkpoints as programs read them: each also says which checkpoint it is of."""
    return [{"checkpoint": training.label(answer.value.lora), **answer.facts} for answer in answers]


def _recommend(training: Training, chosen: Answer) -> str:
    if chosen.best is None or chosen.interval is None:
        raise ValueError(f"The answer of {chosen.label} names no strength.")
    low, high = chosen.interval
    return (
        f"Use checkpoint {training.label(chosen.value.lora)} at {exact(chosen.best)}: {chosen.passed} of "
        f"{chosen.scenes} scenes pass every test there ({low:.0%} to {high:.0%})."
    )


def _find_nearest(ordered: Sequence[Answer]) -> Answer:
    """The answer to tell where none names a strength; of those that want more, the one that was trained most."""
    word = min((answer.word for answer in ordered), key=_NEAREST.index)
    same = [answer for answer in ordered if answer.word == word]
    return same[-1] if word == "try_higher" else same[0]


def _find_copying(later: Sequence[Answer]) -> Answer | None:
    """The first of the later checkpoints from which on every one copies."""
    found = None
    for answer in reversed(later):
        if not _copies(answer):
            break
        found = answer
    return found


def _copies(answer: Answer) -> bool:
    seen = _list_seen(answer)
    return bool(seen) and all((intact := point.tally("intact")).of and intact.share < HOLDS for point in seen)


def _list_seen(answer: Answer) -> list[Point]:
    return [point for point in answer.points if point.strength > 0 and point.change >= VISIBLE]


def _say_copies(training: Training, answer: Answer) -> str:
    point = _list_seen(answer)[0]
    intact = point.tally("intact")
    return (
        f"{training.label(answer.value.lora)} only copies: at {exact(point.strength)} already, pictures of different "
        f"prompts have grown alike, or broken, in {intact.of - intact.passed} of {intact.of} scenes."
    )
