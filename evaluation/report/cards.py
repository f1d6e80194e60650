"""What a sweep says when it ends, as cards: can it be trusted, and which strength to use. `templates/card.html` draws.

A card says it in words; its colour only repeats them.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from evaluation.judge.advice import Advice
from evaluation.store.records import Verdict

WAITING: Final = Verdict(
    ok=None, summary="When the sweep ends: is strength 0 the base model, and did every strength change the picture?"
)

_VERDICTS: Final = MappingProxyType(
    {
        True: ("good", "✓", "Trustworthy"),
        False: ("bad", "✕", "Do not trust this sweep"),
        None: ("open", "…", "Not judged yet"),
    }
)

_NO_ANSWER: Final = MappingProxyType(
    {
        True: "Too little was measured to say. Add strengths, or rate the images.",
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


def view_answer(verdict: Verdict, answer: Advice | None, *, measuring: bool = False, problem: str = "") -> Card:
    """Return the card that says which strength to use, or why nothing is said of it.

    `measuring`: it is still being worked out. `problem`: why not everything could be measured.
    """
    told = answer is not None and not measuring
    word, sentence = "", "Measuring …" if measuring else _NO_ANSWER[verdict.ok]
    if answer is not None and told:
        first, colon, rest = answer.sentence.partition(": ")
        word, sentence = (first, rest) if colon and answer.low is not None else ("", answer.sentence)
    return Card(
        name="which",
        kind="told" if told else "open",
        sign="?",
        label="Which strength?",
        heading="Which strength?",
        word=word,
        sentence=sentence,
        hint="" if measuring else problem,
        lines=answer.evidence if answer is not None and told else (),
        folded="What else was measured",
    )
