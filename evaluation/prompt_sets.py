"""Prompts under a name, with `{subject}` and `{trigger}` filled in: several scenes round the one that a person typed.

A LoRA's mistakes are of prompts, not of seeds: four prompts tell what four seeds of one prompt hide.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from evaluation.axes import SweepSpec
from evaluation.cost import estimate_credits, format_credits
from evaluation.grid import change_prompts, extend_spec, plan
from evaluation.judge.answer import Answer, answer_run
from evaluation.store.presets import Presets
from evaluation.store.records import Run
from evaluation.store.rows import PromptSetRow
from evaluation.store.store import Store
from evaluation.trigger import add_trigger, has_trigger
from lora_runtime.errors import InvalidInput, KleinLabError, NotFound
from lora_runtime.requests import SEED_BITS
from lora_runtime.written import count_of, quote

FIELDS: Final = ("{subject}", "{trigger}")

# Where it stands, which is said before or after what is shown.
_SCENE = re.compile(r"\b(?:in|on|at|by|under|underwater|near|before|behind|inside|to the|high up|low down)\b", re.I)


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts under a name. `{subject}` is what a person's prompt shows, `{trigger}` the LoRA's trigger phrase."""

    name: str
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = {field for prompt in self.prompts for field in re.findall(r"\{[^{}]*\}", prompt)} - set(FIELDS)
        if unknown:
            raise InvalidInput(
                f"Prompt set: {quote(min(unknown))} is none of {' and '.join(FIELDS)}. Write one of them."
            )
        if not self.prompts:
            raise InvalidInput("Prompt set: it holds no prompt. Write at least one.")

    @classmethod
    def of(cls, name: str, prompts: Sequence[str], trigger: str | None) -> "PromptSet":
        """Make a set of prompts as they are written: what the first one shows becomes `{subject}` in all of them.

        A first one that has a field already is taken as it is.
        """
        written = not prompts or any(field in prompts[0] for field in FIELDS)
        subject = "" if written else find_subject(prompts[0], trigger)
        swaps = [(words, field) for words, field in ((subject, "{subject}"), (trigger, "{trigger}")) if words]
        kept = []
        for prompt in prompts:
            for words, field in swaps:
                prompt = re.sub(rf"(?<!\w){re.escape(words)}(?!\w)", field, prompt, flags=re.I)
            kept.append(" ".join(prompt.split()))
        return cls(name=" ".join(name.split()), prompts=tuple(dict.fromkeys(each for each in kept if each)))

    def fill(self, prompt: str, trigger: str | None) -> tuple[str, ...]:
        """Return the prompts round `prompt`, each once; the trigger phrase is in all that asked for it, or in none."""
        subject = find_subject(prompt, trigger)
        filled = (each.replace("{subject}", subject).replace("{trigger}", trigger or "") for each in self.prompts)
        return tuple(dict.fromkeys(" ".join(each.split()).strip(" ,") for each in filled))

    def put_round(self, spec: SweepSpec) -> SweepSpec:
        """Return `spec` with the set's prompts round each of its own, in their place.

        Raises:
            InvalidInput: The cells are too many.
        """
        trigger = spec.loras[0].trigger_phrase if spec.loras else None
        return change_prompts(spec, (each for prompt in spec.prompts for each in self.fill(prompt, trigger)))


FOUR_SCENES: Final = PromptSet(
    name="four scenes",
    prompts=("{subject} on the beach", "{subject} in a forest", "{subject} in the city", "{subject} at night"),
)
"""Four places that any subject can be in."""

PROMPT_SETS: Final = MappingProxyType({FOUR_SCENES.name: FOUR_SCENES})
"""The built-in sets by name."""

SURE_SEEDS: Final = 2
"""Seeds of each prompt, to make sure."""


class PromptSets:
    """The prompt sets that an organization can use: the built-in ones, and those that it keeps."""

    def __init__(self, store: Store) -> None:
        self._kept = Presets(store.database, PromptSetRow, "Prompt set")

    def list(self, organization: str) -> tuple[PromptSet, ...]:
        """Return the built-in sets, then the kept ones by name."""
        kept = (
            PromptSet(name=each.name, prompts=tuple(json.loads(each.form))) for each in self._kept.list(organization)
        )
        return (*PROMPT_SETS.values(), *kept)

    def find(self, organization: str, name: str) -> PromptSet:
        """Return one set.

        Raises:
            NotFound: There is none of that name.
        """
        found = self.list(organization)
        chosen = next((each for each in found if each.name == name), None)
        if chosen is None:
            names = ", ".join(each.name for each in found)
            raise NotFound(f"There is no prompt set {quote(name)}. There are: {names}.")
        return chosen

    def save(self, organization: str, prompts: PromptSet) -> bool:
        """Keep a set under its name; return whether it took the place of one.

        Raises:
            InvalidInput: The name is none, or that of a built-in set; there are too many.
        """
        self._require_own(prompts.name)
        return self._kept.save(organization, prompts.name, json.dumps(prompts.prompts)) is not None

    def delete(self, organization: str, name: str) -> None:
        """Delete a kept set.

        Raises:
            NotFound: There is none of that name.
            InvalidInput: It is a built-in one.
        """
        self._require_own(name)
        self._kept.delete(organization, name)

    def _require_own(self, name: str) -> None:
        if " ".join(name.split()) in PROMPT_SETS:
            raise InvalidInput(f"Prompt set: {quote(name)} is built in. Choose another name.")


def find_subject(prompt: str, trigger: str | None) -> str:
    """Return what a prompt shows, without where: "a red cat" of "a red cat in the snow"; the trigger phrase stays.

    A prompt in which nothing stands before its scene is taken whole.
    """
    parts = [_SCENE.split(part)[0].strip() for part in re.split(r"[,.;]", prompt)]
    found = next((part for part in parts if part), prompt)
    return add_trigger(found, trigger) if trigger and has_trigger(prompt, trigger) else found


def make_sure(spec: SweepSpec, answers: Sequence[Answer], prompts: PromptSet = FOUR_SCENES) -> SweepSpec:
    """Return the sweep that makes an answer sure: the set's prompts times two seeds, at the strengths that matter.

    These are the strengths that hold so far, with the one below and the one above; all of them where none holds.

    Raises:
        InvalidInput: There is no LoRA whose strength varies, or the cells are too many.
    """
    if not spec.loras:
        raise InvalidInput("Make sure: there is no LoRA in this sweep. Choose one, and run it.")
    if not any(spec.strengths):
        raise InvalidInput("Make sure: this sweep has strength 0 alone, the base model. Add a strength, and run it.")
    filled = prompts.fill(spec.prompts[0], spec.loras[0].trigger_phrase)
    # Seeds that follow the first: the same call asks for the same pictures, so that nothing is rendered twice.
    seeds = tuple((spec.seeds[0] + number) % 2**SEED_BITS for number in range(SURE_SEEDS))
    scenes = replace(spec, prompts=filled, seeds=seeds, strengths=(Decimal(0),))
    return extend_spec(scenes, _list_strengths(spec, answers))


def make_run_sure(store: Store, run: Run) -> SweepSpec:
    """Return the sweep that makes the answer of a run sure.

    Raises:
        InvalidInput: It is not finished, not to be trusted or as sure already; as `make_sure`.
    """
    if run.status != "done":
        raise InvalidInput("Make sure: pictures of this sweep are missing. Continue it first.")
    if run.is_red:
        raise InvalidInput("Make sure: this sweep cannot be trusted. Mend what its verdict names, and run it again.")
    prompts, seeds = len(FOUR_SCENES.prompts), SURE_SEEDS
    if len(run.spec.prompts) >= prompts and len(run.spec.seeds) >= seeds:
        raise InvalidInput(
            f"Make sure: this sweep has {prompts} prompts × {seeds} seeds already. Take another prompt to learn more."
        )
    try:
        answers = answer_run(store, run.id)
    except KleinLabError:
        answers = ()  # no judge, which the answer's card says: then every strength matters
    return make_sure(run.spec, answers)


def describe_effort(spec: SweepSpec, store: Store) -> str:
    """Return what a sweep asks for before it runs: how many pictures are new, how long they take, what they cost."""
    new = {cell.identity: cell for cell in plan(spec) if store.image(cell.identity) is None}
    said = [count_of(len(new), "new picture")]
    seconds, bill = 0.0, Decimal(0)
    for cell in new.values():
        request = cell.request
        size = (request.width, request.height)
        took = store.seconds_per_image(request.weights, request.precision, *size, request.steps)
        seconds = math.nan if took is None else seconds + took
        if cell.target.server:
            price = estimate_credits(request.weights, request.precision, width=size[0], height=size[1])
            bill += price or 0
    said += [f"about {max(1, round(seconds))} s"] if new and not math.isnan(seconds) else []
    said += [format_credits(bill)] if bill else []
    return ", ".join(said)


def _list_strengths(spec: SweepSpec, answers: Sequence[Answer]) -> tuple[Decimal, ...]:
    ordered = sorted(spec.strengths)
    held = {strength for answer in answers for strength, mark in answer.marks.items() if mark in ("use", "best")}
    if not held:
        return tuple(ordered)
    places = [index for index, strength in enumerate(ordered) if strength in held]
    return tuple(ordered[max(places[0] - 1, 0) : places[-1] + 2])
