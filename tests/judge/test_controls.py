"""Negative controls: LoRAs of which no strength is right, or a known one, are told by a word of their own."""

from decimal import Decimal
from pathlib import Path

import pytest

from benchmarks.controls import make_noise, scale_lora
from evaluation.grid import make_spec
from evaluation.judge.answer import Answer, answer_run
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from lora_runtime.backends.local import LocalBackend
from tests.judge.test_evidence import PROMPTS

SCENES = tuple(prompt.replace("owl", "mushroom") for prompt in PROMPTS)


@pytest.mark.slow
def test_every_control_gets_its_own_word(local_backend: LocalBackend, store: Store, tmp_path: Path) -> None:
    def ask(lora: str, strengths: str) -> Answer:
        spec = make_spec(local_backend, loras=[lora], prompts=SCENES, seeds=[7], strengths=strengths)
        *_, finished = run_sweep(spec, backend=local_backend, store=store)
        assert isinstance(finished, Finished)
        (found,) = answer_run(store, finished.run_id)
        return found

    scaled = {factor: scale_lora("style", factor, tmp_path) for factor in (-1, 0.0001, 0.01, 0.4, 3, 50)}
    found = {
        "noise": ask(make_noise("style", tmp_path), "0, 0.6, 1.2"),
        "the subject without its trigger phrase": ask("subject", "0, 0.6, 1.2"),
        **{f"style x{factor}": ask(file, "0, 0.6, 1.2") for factor, file in scaled.items() if factor != 3},
    }
    assert {name: answer.word for name, answer in found.items()} == {
        "noise": "does_nothing",
        "the subject without its trigger phrase": "cannot_tell",
        "style x-1": "no_strength_does_both",
        "style x0.0001": "does_nothing",
        "style x0.01": "does_nothing",
        "style x0.4": "try_higher",
        "style x50": "try_lower",
    }
    assert all(answer.best is None for answer in found.values())
    threefold = ask(scaled[3], "0, 0.4, 0.8, 1.2")
    assert threefold.word in ("use", "cannot_tell", "try_lower")
    assert threefold.marks[Decimal("0.8")] == threefold.marks[Decimal("1.2")] == "lost", "rubble holds nowhere"
