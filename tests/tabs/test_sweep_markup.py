"""What the Sweep tab draws when a sweep has ended."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from evaluation.grid import plan
from evaluation.judge.answer import Answer
from evaluation.judge.evidence import Value
from evaluation.store.records import CellRecord, Verdict
from evaluation.tabs.markup import draw_grid, draw_outcome, image_url
from tests.drawing_backend import STYLE, make_drawing_spec

GOOD = Verdict(ok=True, summary="Every strength acted.")
ANSWER = Answer(
    value=Value(lora=STYLE, weights="pocket", precision="bf16", backend="local", trigger=None),
    label="<b>x</b>",
    word="use",
    low=Decimal("0.5"),
    high=Decimal(1),
    best=Decimal(1),
    sentence="0.5 to 1: from 0.5 on <i>it</i> shows.",
    lines=("${alert(1)} & more",),
    marks={Decimal("0.5"): "use", Decimal(1): "best"},
)


def test_the_answer_stands_beside_the_verdict_and_texts_are_inert() -> None:
    html = draw_outcome(GOOD, [ANSWER])
    assert "<strong>0.5 to 1</strong>: from 0.5 on &lt;i&gt;it&lt;/i&gt; shows." in html
    assert "${alert(1)} &amp; more" in html
    assert 'aria-label="Which strength?"' in html
    apart = draw_outcome(GOOD, [replace(ANSWER, best=None, sentence="a: 0.5; b: 1.")])
    assert "<strong>" not in apart


@pytest.mark.parametrize(
    ("verdict", "measuring", "said"),
    [
        (replace(GOOD, ok=None), False, "When the sweep ends"),
        (GOOD, False, "No LoRA whose strength varies"),
        (GOOD, True, "Measuring"),
        (replace(GOOD, ok=False), False, "Not before the sweep can be trusted"),
    ],
)
def test_without_an_answer_it_says_why(verdict: Verdict, measuring: bool, said: str) -> None:
    assert said in draw_outcome(verdict, measuring=measuring)


def test_what_could_not_be_measured_is_told_beside_the_answer() -> None:
    html = draw_outcome(GOOD, [ANSWER], problem="There is no <CLIP> in that folder.")
    assert "0.5 to 1" in html
    assert "no &lt;CLIP&gt; in that folder" in html
    assert "no &lt;CLIP&gt;" in draw_outcome(GOOD, problem="There is no <CLIP> there.")


def test_advised_strengths_are_marked_and_images_are_found_under_any_prefix() -> None:
    spec = make_drawing_spec()
    records = [
        CellRecord(run_id="run-1", cell=cell, state="done", image=Path("/blobs/a b.png"), rating=cell.column or None)
        for cell in plan(spec)
    ]
    html = draw_grid(spec, records, running=False, own=False, answers=[ANSWER])
    assert html.count("class=advised") == 2
    assert 'data-own="false"' in html
    assert [f'data-rating="{rating}"' in html for rating in (0, 1, 2)] == [True] * 3
    assert image_url(Path("/blobs/a b.png")) == "gradio_api/file=/blobs/a%20b.png"
    assert html.count('src="gradio_api/file=/blobs/a%20b.png"') == 3
