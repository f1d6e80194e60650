"""Which strength, and why: from ratings, from the prompt fit, from change alone; and on the pocket's own LoRAs."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from evaluation.axes import SweepSpec
from evaluation.grid import make_spec, plan
from evaluation.judge.advice import Advice, advise, advise_each
from evaluation.judge.prompt_fit import advise_run
from evaluation.store.records import CellRecord
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from lora_runtime.backends.local import LocalBackend
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend, make_drawing_spec

SSIM = (1.0, 0.9, 0.5, 0.45, 0.2, 0.19)
FIT = (15.0, 14.8, 14.0, 13.0, 8.0, 2.0)
STRENGTHS = "0, 0.4, 0.6, 0.8, 1, 1.2"


def known(
    spec: SweepSpec, ssim: Sequence[float], fit: Sequence[float] | None = None, ratings: dict[int, int] | None = None
) -> list[CellRecord]:
    """Cells of a sweep that are done and scored, the same in every row."""
    records = []
    for cell in plan(spec):
        scores = {"ssim": ssim[cell.column]}
        if fit is not None:
            scores["clip"] = fit[cell.column]
        rating = (ratings or {}).get(cell.position)
        records.append(
            CellRecord(run_id="run-1", cell=cell, state="done", image=Path("x.png"), scores=scores, rating=rating)
        )
    return records


def say(spec: SweepSpec, records: Sequence[CellRecord]) -> Advice:
    found = advise(spec, records)
    assert found is not None
    return found


def test_the_range_has_most_of_the_change_and_still_follows_the_prompt() -> None:
    spec = make_drawing_spec(strengths=STRENGTHS)
    found = say(spec, known(spec, SSIM, FIT))
    assert (found.low, found.high, found.basis) == (Decimal("0.6"), Decimal("0.8"), "prompt")
    assert found.sentence == (
        "0.6 to 0.8: from 0.6 on the LoRA shows (SSIM to base 0.50); at 1 the picture no longer follows the prompt "
        "(CLIP score 8.0, base 15.0)."
    )
    assert found.evidence == (
        "The picture changes most between 0.4 and 0.6 (SSIM to base from 0.90 to 0.50).",
        "All of this is one seed and one prompt: with more of them as further rows it is surer.",
    )


def test_where_the_curve_comes_to_rest_is_told() -> None:
    spec = make_drawing_spec(strengths=STRENGTHS)
    found = say(spec, known(spec, (1, 0.9, 0.5, 0.2, 0.19, 0.21), FIT))
    assert found.evidence[1] == "From 0.8 on it hardly changes any more (SSIM to base 0.20)."


def test_a_lora_that_never_loses_the_prompt_says_how_far_was_tried() -> None:
    spec = make_drawing_spec(strengths=STRENGTHS)
    found = say(spec, known(spec, SSIM, (15, 15, 15, 15, 14.5, 14.2)))
    assert (found.low, found.high) == (Decimal("1"), Decimal("1.2"))
    assert "1.2, the highest tried, still follows the prompt (CLIP score 14.2, base 15.0)" in found.sentence
    less = say(spec, known(spec, SSIM, (15, 15, 15, 15, 14.5, 12.9)))
    assert "follows the prompt less, but still" in less.sentence


def test_a_lora_that_brings_what_the_prompt_asks_for_says_where() -> None:
    spec = make_drawing_spec(strengths=STRENGTHS)
    found = say(spec, known(spec, (1, 0.99, 0.97, 0.9, 0.85, 0.8), (8, 8, 7.5, 8.2, 10.5, 10.1)))
    assert "The picture fits the prompt best at 1 (CLIP score 10.5, base 8.0)." in found.evidence


def test_a_dip_that_passes_is_not_the_end() -> None:
    spec = make_drawing_spec(strengths=STRENGTHS)
    found = say(spec, known(spec, (1, 0.95, 0.9, 0.85, 0.8, 0.78), (8, 8, 4, 3, 9, 9)))
    assert (found.low, found.high) == (Decimal("1"), Decimal("1.2"))


def test_a_lora_that_is_lost_from_the_start_gets_no_strength() -> None:
    spec = make_drawing_spec(strengths=STRENGTHS)
    found = say(spec, known(spec, SSIM, (15, 2, 2, 2, 2, 2)))
    assert (found.low, found.high) == (None, None)
    assert found.sentence.startswith("Below 0.4: there already the picture does not follow the prompt (CLIP score 2.0")


def test_without_a_prompt_fit_only_the_change_is_told() -> None:
    spec = make_drawing_spec(strengths=STRENGTHS)
    found = say(spec, known(spec, SSIM))
    assert (found.low, found.high, found.basis) == (None, None, "change")
    assert found.sentence == (
        "The picture changes most between 0.4 and 0.6 (SSIM to base from 0.90 to 0.50). "
        "Whether it still follows the prompt was not measured."
    )


def test_ratings_come_first_and_keep_what_was_measured() -> None:
    spec = make_drawing_spec(strengths=STRENGTHS, seeds=[7, 8])
    records = known(spec, SSIM, FIT, {3: 5, 9: 4, 2: 3, 4: 1})
    found = say(spec, records)
    assert (found.low, found.high, found.basis) == (Decimal("0.8"), Decimal("0.8"), "ratings")
    assert found.sentence == "0.8: rated best (4.5 of 5, 2 ratings; next is 0.6 with 3.0)."
    assert found.evidence[0].startswith("0.6 to 0.8: from 0.6 on")


@pytest.mark.parametrize(
    ("ratings", "sentence"),
    [
        ({2: 5}, "0.6: rated best (5.0 of 5, 1 rating; the only strength rated)."),
        ({2: 4, 3: 4, 4: 1}, "0.6 and 0.8: rated best (4.0 of 5, 2 ratings; next is 1 with 1.0)."),
        ({0: 5, 3: 2}, "0 (base): rated best (5.0 of 5, 1 rating; next is 0.8 with 2.0)."),
    ],
)
def test_what_ratings_say(ratings: dict[int, int], sentence: str) -> None:
    spec = make_drawing_spec(strengths=STRENGTHS)
    assert say(spec, known(spec, SSIM, FIT, ratings)).sentence == sentence


@pytest.mark.parametrize("ratings", [{2: 2}, {2: 3, 3: 3}])
def test_ratings_that_say_nothing_leave_it_to_the_measurements(ratings: dict[int, int]) -> None:
    spec = make_drawing_spec(strengths=STRENGTHS)
    assert say(spec, known(spec, SSIM, FIT, ratings)).basis == "prompt"


def test_too_little_is_no_advice() -> None:
    spec = make_drawing_spec(strengths=STRENGTHS)
    assert advise(spec, []) is None
    assert advise(spec, known(spec, SSIM, FIT)[:2]) is None
    assert advise(spec, known(spec, (1.0,) * 6, (15.0,) * 6)) is None, "a LoRA that does nothing"
    waiting = [CellRecord(run_id="run-1", cell=cell, state="pending") for cell in plan(spec)]
    assert advise(spec, waiting) is None
    negative = make_drawing_spec(strengths="-1, -0.5, 0")
    assert advise(negative, known(negative, (0.2, 0.5, 1.0), (3, 9, 15))) is None


def test_rows_are_averaged_each_against_its_own_base() -> None:
    spec = make_drawing_spec(strengths="0, 0.5, 1", prompts=["an owl", "a fish"])
    records = [
        CellRecord(
            run_id="run-1",
            cell=cell,
            state="done",
            scores={"ssim": 1 - 0.2 * cell.column, "clip": (15, 14, 9)[cell.column] - 5 * cell.row},
        )
        for cell in plan(spec)
    ]
    found = say(spec, records)
    assert found.high == Decimal("0.5")
    assert "(CLIP score 6.5, base 12.5)" in found.sentence
    assert not [sentence for sentence in found.evidence if "one seed" in sentence]


def test_several_loras_get_an_advice_each() -> None:
    spec = make_drawing_spec(strengths=STRENGTHS, loras=[STYLE, SUBJECT])
    records = known(spec, SSIM, FIT)
    both = say(spec, records)
    assert both.sentence == "style: 0.6 to 0.8; subject: 0.6 to 0.8."
    assert [line.partition(":")[0] for line in both.evidence] == ["style", "subject"]
    assert [each.lora for each in advise_each(records)] == ["style", "subject"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "prompt", "strengths", "lowest", "highest", "says"),
    [
        ("overtrained", "a red cat in the snow", "0, 0.3, 0.5-0.9 (+0.1), 1", "0.5", "0.9", "no longer follows"),
        ("style", "a small green boat on the beach", "0-1 (+0.25)", "0.75", "1", "the LoRA shows"),
        ("subject", "a red ohwx on the beach", "0, 0.5, 1, 1.2, 1.4", "1", "1.4", "the highest tried, still follows"),
    ],
)
def test_what_it_says_of_the_bundled_loras(
    local_backend: LocalBackend,
    store: Store,
    lora: str,
    prompt: str,
    strengths: str,
    lowest: str,
    highest: str,
    says: str,
) -> None:
    spec = make_spec(local_backend, loras=[lora], prompts=[prompt], strengths=strengths, seeds=[7, 3])
    *_, finished = run_sweep(spec, backend=local_backend, store=store)
    assert isinstance(finished, Finished)
    found = advise_run(store, finished.run_id)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert Decimal(lowest) <= found.low <= found.high <= Decimal(highest), found.sentence
    assert says in found.sentence
    assert advise_run(store, finished.run_id) == found, "scores are kept"


def test_a_red_sweep_gets_no_advice_and_counts_for_nothing_beside_others() -> None:
    for changes in ({}, {"loras": [STYLE, SUBJECT]}, {"seeds": [7, 8]}):
        spec = make_drawing_spec(strengths=STRENGTHS, **changes)
        records = known(spec, SSIM, FIT, {3: 5})
        assert advise(spec, records) is not None
        red = [replace(record, red=True) for record in records]
        assert advise(spec, red) is None
        assert advise_each(red) == ()
        assert advise_each([*red, *records]) == advise_each(records)


def test_the_log_knows_which_of_its_rows_are_red(store: Store) -> None:
    still = DrawingBackend(acts=lambda strength: Decimal(0))
    for backend in (still, DrawingBackend()):
        for _ in run_sweep(
            make_drawing_spec(strengths=STRENGTHS, seeds=[7 if backend is still else 8]), backend=backend, store=store
        ):
            pass
    reds = {run.id: run.is_red for run in store.runs()}
    assert sorted(reds.values()) == [False, True]
    assert {record.run_id: record.red for run in store.runs() for record in store.cells(run.id)} == reds
    for run in store.runs():
        assert {record.red for record in store.cells(run.id)} == {run.is_red}
        assert (advise(run.spec, store.cells(run.id)) is None) == run.is_red


def test_rows_in_which_a_strength_means_something_else_are_told_apart() -> None:
    ohwx = replace(STYLE, trigger_phrase="ohwx")
    spec = make_spec(
        DrawingBackend(), loras=[ohwx], prompts=["a fox"], seeds=[7], strengths=STRENGTHS, compare_trigger=True
    )
    found = say(spec, known(spec, SSIM, FIT))
    assert found.sentence == (
        "with the trigger phrase “ohwx”: 0.6 to 0.8; without the trigger phrase “ohwx”: 0.6 to 0.8."
    )
    assert (found.low, len(found.evidence)) == (None, 2)
