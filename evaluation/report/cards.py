"""What a sweep says when it ends, as cards: can it be trusted, and which strength to use. `templates/card.html` draws.

A card says it in words; its colour only repeats them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from evaluation.axes import Training
from evaluation.judge.answer import Answer
from evaluation.judge.training import answer_training
from evaluation.store.records import Verdict

WAITING: Final = Verdict(
    ok=None, summary="When the sweep ends: is strength 0 the base model, and did every strength change the picture?"
)

HEADING: Final = "Which strength?"
WHICH: Final = "Which checkpoint, at which strength?"

_VERDICTS: Final = MappingProxyType(
    {
        True: ("good", "✓", "Trustworthy"),
        False: ("bad", "✕", "Do not trust this sweep"),
        None: ("open", "…", "Not judged yet"),
    }
)

_NO_ANSWER: Final = MappingProxyType(
    {
        True: "No LoRA whose strength varies is here. Choose one, and run it.",
        False: "Not before the sweep can be trusted.",
        None: "When the sweep ends: from which strength on the LoRA shows, and up to which one the prompt is followed.",
    }
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """A heading, a sentence that may begin with a word to be seen first, and the lines it rests on.

    `name` and `kind` choose its look. `hint`: why not everything could be said. `folded`: the lines are shown at a
    click on these words.
    """

    name: str
    kind: str
    sign: str
    label: str
    heading: str
    word: str = ""
    sentence: str = ""
    hint: str = ""
    lines: tuple[str, ...] = ()
    folded: str = ""


def view_verdict(verdict: Verdict) -> Card:
    """Return the card that says whether a sweep can be trusted."""
    kind, sign, heading = _VERDICTS[verdict.ok]
    return Card(
        name="verdict", kind=kind, sign=sign, label="Verdict", heading=heading, sentence=verdict.summary,
        lines=verdict.findings,
    )  # fmt: skip


def view_answers(
    verdict: Verdict,
    answers: Sequence[Answer] = (),
    *,
    training: Training | None = None,
    measuring: bool = False,
    problem: str = "",
) -> tuple[Card, ...]:
    """Return a card for each answer that says which strength to use; one that says why nothing is said, without any.

    Of a `training` run it is one card, which says which checkpoint too. `measuring`: it is still being worked out.
    `problem`: why not everything could be measured.
    """
    if measuring or not answers:
        sentence = "Measuring …" if measuring else _NO_ANSWER[verdict.ok]
        return (_view_answer("open", sentence=sentence, hint="" if measuring else problem),)
    if (found := answer_training(training, answers)) is not None:
        word, sentence = _split(found.sentence) if found.chosen else ("", found.sentence)
        return (_view_answer("told", heading=WHICH, word=word, sentence=sentence, hint=problem, lines=found.lines),)
    return tuple(_say(answer, named=len(answers) > 1, hint=problem) for answer in answers)


def _say(answer: Answer, *, named: bool, hint: str) -> Card:
    word, sentence = _split(answer.sentence) if answer.best is not None else ("", answer.sentence)
    heading = f"Which strength of {answer.label}?" if named else HEADING
    return _view_answer("told", heading=heading, word=word, sentence=sentence, hint=hint, lines=answer.lines)


def _split(sentence: str) -> tuple[str, str]:
    """The word that a sentence begins with, before its colon, and the rest; an empty word where it has none."""
    first, colon, rest = sentence.partition(": ")
    return (first, rest) if colon else ("", sentence)


def _view_answer(kind: str, *, heading: str = HEADING, **said: Any) -> Card:
    return Card(name="which", kind=kind, sign="?", label=heading, heading=heading, folded="What was measured", **said)
