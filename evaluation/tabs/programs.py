"""Rendering for programs and agents: `/sweep`, `/generate`, and `/votes` on what came of it.

They are for `gradio_client`, MCP and plain HTTP. Names, types and docstrings are a contract: clients and agents read
them from the running app. What renders logs it, like the tabs do, and answers with rows of the same columns. A LoRA is
named, never read from a path.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import gradio as gr

from evaluation.grid import SweepSpec, make_spec, parse_precisions
from evaluation.judge.answer import Answer, find_answer, tell_cells
from evaluation.judge.ballot import count_votes, list_facts
from evaluation.judge.training import TrainingAnswer, answer_training
from evaluation.prompt_sets import PROMPT_SETS, PromptSet, PromptSets
from evaluation.report.columns import show_record
from evaluation.store.references import keep_picture
from evaluation.store.store import CellRecord, Store
from evaluation.strengths import exact, join_strengths
from evaluation.sweep import Planned, run_sweep
from evaluation.tabs.page import RUNS
from evaluation.tabs.sweep_form import SweepForm, choose_backends, make_form_spec
from evaluation.under_way import UnderWay
from lora_runtime.backends.base import Backend
from lora_runtime.errors import InvalidInput
from lora_runtime.lora.training import TrainingRun
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.training_runs import TrainingRuns
from lora_runtime.requests import choose_weights
from lora_runtime.server.images import decode_image
from lora_runtime.storage.blobs import Blobs
from lora_runtime.strength import check_strength
from lora_runtime.values import Reference
from lora_runtime.written import Number, Whole, quote, read_decimal, read_text, read_whole

log = logging.getLogger(__name__)

_SEED: Final = "Send one such as 7, or -1 for a random one."


NO_PICTURES: Final[list[str]] = []
"""A default that a client is told as a plain list."""


@dataclass(frozen=True, kw_only=True)
class Studio:
    """What an endpoint renders with; `caller` says for which organization a request speaks."""

    backends: Mapping[str, Backend]
    store: Store
    shelf: Shelf
    training_runs: TrainingRuns
    under_way: UnderWay
    blobs: Blobs
    caller: Callable[[gr.Request], str]

    @property
    def prompt_sets(self) -> PromptSets:
        """The prompt sets of the app."""
        return PromptSets(self.store)

    def keep(self, picture: str) -> Reference:
        """Keep a picture that came as base64."""
        return keep_picture(self.blobs, decode_image(picture), "likeness")

    def places(self, backend: str) -> Mapping[str, Backend]:
        """The backends that are named, such as "local,remote"; the app's first one for an empty text."""
        form = SweepForm(lora=None, prompt="", strengths="", seed="", weights="", backends=backend)
        return choose_backends(self.backends, form)

    def weights(self, organization: str, lora: str, backend: str) -> str:
        """The weights that are meant when none are named."""
        first = next(iter(self.places(backend).values()))
        found = self.training_runs.choose(organization, lora) if lora else None
        if isinstance(found, TrainingRun):
            found = next((each.lora for each in found.checkpoints if each.lora), None)
        return choose_weights(first, found)

    def sweep(self, spec: SweepSpec, organization: str) -> tuple[CellRecord, ...]:
        """Start a sweep and follow it to its end, as a page does; it goes on when whoever asked for it goes away."""
        going = self.under_way.start(spec, organization=organization, origin="api")
        *_, last = going.follow()
        if last.error is not None:
            raise last.error
        return self.store.cells(going.run_id)

    def render(self, spec: SweepSpec, organization: str) -> tuple[CellRecord, ...]:
        """Render a spec of one cell, which waits in no queue, and return it."""
        run_id = ""
        for event in run_sweep(spec, backend=self.backends, store=self.store, organization=organization, origin="api"):
            if isinstance(event, Planned):
                run_id = event.run_id
        return self.store.cells(run_id)

    def answer(self, records: Sequence[CellRecord]) -> tuple[Answer, ...]:
        """The answers of a run; none when its judge cannot be loaded, as the pictures are there all the same."""
        answers, problem = tell_cells(self.store, records)
        if problem:
            log.warning("No answer: %s", problem)
        return answers


def _show_answer(record: CellRecord, answers: Sequence[Answer]) -> dict[str, object] | None:
    found = find_answer(record, answers)
    return found.facts if found else None


def _show_training(record: CellRecord, spec: SweepSpec, found: TrainingAnswer | None) -> dict[str, object]:
    """What a row of a training run says more."""
    lora = record.cell.request.lora
    if spec.training is None or lora is None:
        return {}
    return {"checkpoint": spec.training.label(lora), "training": found.facts if found else None}


def build_api(studio: Studio) -> None:
    """Add the endpoints to the current `gr.Blocks`."""
    limits = {"concurrency_limit": RUNS, "concurrency_id": "sweep"}
    gr.api(_make_sweep(studio), api_name="sweep", **limits)
    gr.api(_make_generate(studio), api_name="generate", **limits)
    gr.api(_make_votes(studio), api_name="votes", concurrency_limit=None)
    gr.api(_make_list(studio), api_name="list_training_runs", concurrency_limit=None)
    for made in _make_prompt_sets(studio):
        gr.api(made, api_name=made.__name__, concurrency_limit=None)


def _make_sweep(studio: Studio) -> Callable[..., list[dict[str, Any]]]:
    def sweep(
        request: gr.Request,
        lora: str,
        prompt: str,
        strengths: str | float | list[Number],
        seed: Whole,
        weights: str = "",
        precision: str = "",
        backend: str = "",
        every: Whole = 0,
        last: Whole = 0,
        prompt_set: str = "",
        likeness: list[str] = NO_PICTURES,
    ) -> list[dict[str, Any]]:
        """Render one prompt and seed at every strength of a LoRA, or of all checkpoints of a training run.

        Args:
            lora: The name of a LoRA, as list_finetunes shows it, such as "style", or of a training run, as
                list_training_runs does.
            prompt: What to draw. Put the LoRA's trigger phrase in it, if it has one.
            strengths: A list of numbers, or ranges in a text, such as "0, 0.5, 1", "0-1.2 [7]" or "0.7-0.9 (+0.05)"; a
                range alone, "0.7-0.9", is 5 values. 0, the base model, is added in front when it is missing.
            seed: 0 to 4294967295; -1 for a random one.
            weights: The base checkpoint, such as "pocket" or "klein-4b"; empty is one that the LoRA was made for.
            precision: Such as "bf16" or "fp8", or "bf16,fp8" for a row of each; empty is what runs best here.
            backend: Where: "local", "remote", or "local,remote" for a row of each; empty is this machine.
            every: Of a training run each N-th checkpoint, counted back from the last; 0 takes all.
            last: Of a training run the last so many checkpoints; 0 is all.
            prompt_set: A name that list_prompt_sets shows, such as "four scenes": its prompts with what the prompt
                shows, in its place, a row each. Four prompts make an answer that one cannot.
            likeness: Pictures of the look or the subject in base64, up to 16, to judge by. Not those that the LoRA was
                trained on: they reward copying.

        Returns:
            One row an image, in order: run, position, strength, seed, prompt, lora, weights, precision, backend, status
            ("done" or "failed"), seconds, cost (credits, of a remote server that says it), error, answer, and image,
            the very PNG file that was written (None when it failed). The answer, the same in all rows of one LoRA and
            weights, says which strength to use: word ("use", or why none is named), low, high, best, scenes, passed,
            interval, judge and sentence; None when the sweep cannot be trusted. Rows of a training run also have
            checkpoint, what it is called there, and training, which checkpoint to use at which strength: word,
            checkpoint, strength, passed, scenes, interval, copies_from and sentence.
        """
        organization = studio.caller(request)
        lora, prompt, weights, precision, backend = _read_texts(lora, prompt, weights, precision, backend)
        form = SweepForm(
            lora=lora,
            prompt=prompt,
            strengths=join_strengths(strengths),
            seed=str(read_whole("Seed", seed, remedy=_SEED)),
            weights=weights or studio.weights(organization, lora, backend),
            precision=precision,
            backends=backend,
            every=read_whole("Every", every) or None,
            last=read_whole("Last", last) or None,
            likeness=tuple(studio.keep(read_text("Likeness", each)) for each in likeness),
        )
        spec = make_form_spec(studio.backends, form, partial(studio.training_runs.choose, organization))
        if name := read_text("Prompt set", prompt_set):
            spec = studio.prompt_sets.find(organization, name).put_round(spec)
        records = studio.sweep(spec, organization)
        answers = studio.answer(records)
        found = answer_training(spec.training, answers)
        return [
            show_row(record) | {"answer": _show_answer(record, answers)} | _show_training(record, spec, found)
            for record in records
        ]

    return sweep


def _make_list(studio: Studio) -> Callable[..., list[dict[str, Any]]]:
    def list_training_runs(request: gr.Request) -> list[dict[str, Any]]:
        """List the training runs that sweep knows by name: the checkpoints of one training, in order.

        Returns:
            One object a training run: name (what to pass as lora) and checkpoints, how many there are.
        """
        found = studio.training_runs.list(studio.caller(request))
        return [{"name": run.name, "checkpoints": run.count} for run in found]

    return list_training_runs


def _make_prompt_sets(studio: Studio) -> tuple[Callable[..., Any], ...]:
    sets = studio.prompt_sets

    def list_prompt_sets(request: gr.Request) -> list[dict[str, Any]]:
        """List the prompt sets that sweep knows by name: several scenes to put round what a prompt shows.

        Returns:
            One object a set: name, prompts ({subject} is what a prompt shows, {trigger} the LoRA's trigger phrase), and
            built_in, whether it can be neither replaced nor deleted.
        """
        found = sets.list(studio.caller(request))
        return [{"name": one.name, "prompts": one.prompts, "built_in": one.name in PROMPT_SETS} for one in found]

    def save_prompt_set(request: gr.Request, name: str, prompts: list[str]) -> dict[str, Any]:
        """Keep prompts under a name, in place of those that it had.

        Args:
            name: Such as "my four places"; sweep takes it as prompt_set.
            prompts: Such as ["{subject} on the beach", "{subject} at night"]. {trigger} is the LoRA's trigger phrase.

        Returns:
            What was kept: name and prompts, and replaced, whether the name had others.
        """
        if not isinstance(prompts, list):
            raise InvalidInput(f"Prompts: {quote(str(prompts))} is no list of texts. Send one.")
        kept = PromptSet.of(read_text("Name", name), [read_text("Prompt", each) for each in prompts], None)
        return {"name": kept.name, "prompts": kept.prompts, "replaced": sets.save(studio.caller(request), kept)}

    def delete_prompt_set(request: gr.Request, name: str) -> dict[str, Any]:
        """Delete a prompt set that was kept.

        Args:
            name: As list_prompt_sets shows it.

        Returns:
            The name that was deleted.
        """
        sets.delete(studio.caller(request), read_text("Name", name))
        return {"deleted": name}

    return list_prompt_sets, save_prompt_set, delete_prompt_set


def _make_generate(studio: Studio) -> Callable[..., dict[str, Any]]:
    def generate(
        request: gr.Request,
        prompt: str,
        lora: str = "",
        strength: Number = 1.0,
        seed: Whole = -1,
        weights: str = "",
        width: Whole = 0,
        height: Whole = 0,
        steps: Whole = 0,
        guidance: Number = 0.0,
        precision: str = "",
        backend: str = "",
    ) -> dict[str, Any]:
        """Render one image, with a LoRA or with the base model alone.

        Args:
            prompt: What to draw. Put the LoRA's trigger phrase in it, if it has one.
            lora: The name of a LoRA, as list_finetunes shows it, such as "style"; empty is the base model.
            strength: How strongly the LoRA acts, from -15 to 15; 0 is the base model, and few LoRAs take more than 2.
            seed: 0 to 4294967295, to get the same image again; -1 for a random one.
            weights: The base checkpoint, such as "pocket" or "klein-4b"; empty is one that the LoRA was made for.
            width: Pixels, a multiple of 16; 0 is the weights' own size.
            height: Pixels, a multiple of 16; 0 is the weights' own size.
            steps: Denoising steps; 0 is the weights' own number.
            guidance: Guidance scale, for base weights; 0 is their own.
            precision: "bf16", "fp8" or "fp32"; empty is what runs best here.
            backend: "local" or "remote"; empty is this machine.

        Returns:
            One row, as those of sweep: run, position, strength, seed, prompt, lora, weights, precision, backend,
            status, seconds, cost, error and image, the PNG file that was written.
        """
        organization = studio.caller(request)
        lora, prompt, weights, precision, backend = _read_texts(lora, prompt, weights, precision, backend)
        spec = make_spec(
            studio.places(backend),
            weights=weights or studio.weights(organization, lora, backend),
            loras=(studio.shelf.find(organization, lora),) if lora else (),
            prompts=(prompt,),
            strengths=exact(check_strength(read_decimal("Strength", strength))) if lora else "0",
            seeds=(read_whole("Seed", seed, remedy=_SEED),),
            precision=parse_precisions(precision),
            width=read_whole("Width", width) or None,
            height=read_whole("Height", height) or None,
            steps=read_whole("Steps", steps) or None,
            guidance=float(read_decimal("Guidance", guidance)) or None,
            base_column=False,
        )
        (record,) = studio.render(spec, organization)
        if record.error is not None:
            raise gr.Error(record.error, print_exception=False)
        return show_row(record)

    return generate


def _make_votes(studio: Studio) -> Callable[..., list[dict[str, Any]]]:
    def votes(run: str) -> list[dict[str, Any]]:
        """Read which strengths people chose between two images of one scene, without knowing which was which.

        Args:
            run: The id of a run, as the rows of sweep have it.

        Returns:
            One entry for each weights, precision and place: contest, votes and agreements (for each score, in how many
            decided votes it is better for the image taken); with votes also decided, neither, voters, different
            (whether there is any order beyond chance), p, best, sentence and standings: contender, lora_sha256,
            strength, skill (log-odds) with low and high, and votes, best first.
        """
        return [list_facts(count) for count in count_votes(studio.store, read_text("Run", run))]

    return votes


def _read_texts(lora: object, prompt: object, weights: object, precision: object, backend: object) -> tuple[str, ...]:
    """The fields that are texts: a program may send anything."""
    given = {"LoRA": lora, "Prompt": prompt, "Weights": weights, "Precision": precision, "Backend": backend}
    return tuple(read_text(field, value) for field, value in given.items())


def show_row(record: CellRecord) -> dict[str, Any]:
    """Return a cell as programs see it; its image is a file that Gradio's clients download."""
    image = None
    if record.image is not None:
        image = gr.FileData(path=str(record.image), mime_type="image/png", orig_name=record.image.name).model_dump()
    return {**show_record(record), "status": record.state, "image": image}
