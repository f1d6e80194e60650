"""The HTML report: whole, self-contained, small, and hostile texts stay text."""

import base64
import io
import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.axes import SweepSpec
from evaluation.judge.answer import answer_run
from evaluation.judge.prompt_fit import score_prompts
from evaluation.report.chart import LABEL, list_measures, view_chart
from evaluation.report.columns import list_columns, make_table
from evaluation.report.draw import draw
from evaluation.report.html import BUDGET_BYTES, MAX_IMAGES, embed_images, html_report
from evaluation.store.records import CellRecord, Run
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from lora_runtime.errors import InvalidInput, RenderFailed
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend, make_drawing_spec

HOSTILE = '"><img src=x onerror=alert(1)> ${alert(1)} </style></script> {{ 7*7 }} {% raw %} \u202e'
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class Outside(HTMLParser):
    """Collects what a page would load or follow, and checks that its elements nest."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.images += tag == "img"
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def sweep(store: Store, spec: SweepSpec, backend: DrawingBackend | None = None) -> tuple[Run, tuple[CellRecord, ...]]:
    *_, finished = run_sweep(spec, backend=backend or DrawingBackend(), store=store)
    assert isinstance(finished, Finished)
    return store.run(finished.run_id), store.cells(finished.run_id)


def read(html: str) -> Outside:
    page = Outside()
    page.feed(html)
    assert page.open == []
    return page


def test_it_has_everything_and_asks_for_nothing(store: Store) -> None:
    run, records = sweep(store, make_drawing_spec(seeds=[7, 8], strengths="0, 0.7, 1"))
    store.rate(run.id, 1, 4, "the best one")
    for _ in score_prompts(store, records):
        pass
    html = html_report([(run, store.cells(run.id))], {run.id: answer_run(store, run.id)}, now=NOW)
    page = read(html)
    assert page.images == 6
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in page.links)
    assert not re.search(r"url\(|@import", html)
    for words in (
        "a red fox", "22 November 2026, 12:00 UTC", "style", "seed 8", "0.70", "★★★★", "the best one", "Trustworthy",
        "Which strength?", answer_run(store, run.id)[0].sentence,
        "SSIM to base against strength", "Prompt fit (CLIP) against strength",
        "64 × 64 px", run.id, "default-src 'none'",
    ):  # fmt: skip
        assert words in html, words


def test_a_sweep_that_cannot_be_trusted_gets_no_answer(store: Store) -> None:
    stuck = DrawingBackend(acts=lambda strength: min(strength, Decimal("0.5")))
    run, _ = sweep(store, make_drawing_spec(), stuck)
    store.rate(run.id, 1, 5)
    html = html_report([(run, store.cells(run.id))], {run.id: answer_run(store, run.id)})
    assert "Do not trust this sweep" in html
    assert "Which strength?" not in html


def test_hostile_texts_stay_text(store: Store) -> None:
    spec = make_drawing_spec(prompts=[HOSTILE], loras=[replace(STYLE, name=HOSTILE)])
    failing = DrawingBackend(fails=lambda request: RenderFailed(HOSTILE) if request.strength == 1 else None)
    run, _ = sweep(store, spec, failing)
    store.rate(run.id, 1, 1, HOSTILE)
    html = html_report([(run, store.cells(run.id))], {})
    page = read(html)
    assert page.images == 2
    assert "<img src=x" not in html
    assert "{{ 7*7 }}" in html, "shown as it was written"


def test_picked_rows_of_several_runs(store: Store) -> None:
    first, second = sweep(store, make_drawing_spec()), sweep(store, make_drawing_spec(loras=[SUBJECT]))
    html = html_report([(first[0], first[1][1:2]), (second[0], second[1])], {})
    assert read(html).images == 4
    assert "LoRA strengths: style, subject" in html
    with pytest.raises(InvalidInput, match="Nothing to report"):
        html_report([], {})
    with pytest.raises(InvalidInput, match=f"up to {MAX_IMAGES} images"):
        html_report([(first[0], first[1] * 200)], {})


def test_large_images_share_a_budget(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    paths = []
    for number in range(8):
        small = Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        path = tmp_path / f"{number}.png"
        small.resize((1024, 1024), Image.Resampling.BICUBIC).save(path, compress_level=1)
        paths.append(path)
    budget = 8 * BUDGET_BYTES // 100  # what eight of a hundred images get
    embedded = embed_images([*paths, *paths], budget_bytes=budget)
    assert len(embedded) == 8
    assert sum(map(len, embedded.values())) < budget * 4 / 3 + 1000
    assert BUDGET_BYTES * 4 / 3 < 15_000_000, "a hundred images"
    with Image.open(io.BytesIO(base64.b64decode(embedded[paths[0]].partition(",")[2]))) as image:
        assert max(image.size) >= 384


def test_small_images_keep_their_size(store: Store) -> None:
    _, records = sweep(store, make_drawing_spec())
    assert records[0].image is not None
    (uri,) = embed_images([records[0].image]).values()
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        assert image.size == (64, 64)


def test_a_chart_of_each_measure(store: Store) -> None:
    run, _ = sweep(store, make_drawing_spec(seeds=[7, 8], loras=[STYLE], strengths="0, 0.7, 1"))
    store.rate(run.id, 1, 4)
    store.rate(run.id, 4, 2)
    records = make_table(store.cells(run.id))
    assert list_measures(records) == ["ssim", "mean_difference", "rating", "seconds"]
    (series,) = view_chart(records, "ssim").series
    assert [dot.cell for dot in series.dots] == [f"{run.id}/{position}" for position in range(6)]
    assert series.dots[4].words.startswith("0.7 · seed 8 · SSIM to base")
    assert len(series.line.split()) == len(series.numbers) == 3
    rating = view_chart(records, "rating", place=lambda path: path)
    assert rating.series[0].numbers == (("0.7", "3.0", "2.0", "4.0", "2"),)
    assert [dot.image.endswith(".png") for dot in rating.series[0].dots] == [True, True]
    assert view_chart(records, "clip").series == ()
    for name in list_columns("measure"):
        for live in (True, False):
            read(draw("chart.html", chart=view_chart(records, name), live=live))


def test_a_chart_of_one_value_or_of_thousands(store: Store) -> None:
    _, records = sweep(store, make_drawing_spec(strengths="0.5", base_column=False))
    one = view_chart(make_table(records), "seconds")
    assert [words for _, words in one.across] == ["0.5"]
    (record,) = records
    apart = [replace(record, cell=replace(record.cell, identity=f"{number}")) for number in range(900)]
    assert view_chart(make_table([record] * 900), "seconds").series == one.series, "equal images are one point"
    many = view_chart(make_table(apart), "seconds")
    assert (many.series[0].dots, many.left_out) == ((), 900)


def test_labels_of_strengths_keep_their_room_and_the_highest(store: Store) -> None:
    _, records = sweep(store, make_drawing_spec(strengths="0-2 (+0.05)"))
    chart = view_chart(make_table(records), "seconds")
    places = [at for at, _ in chart.across]
    assert chart.across[0][1] == "2"
    assert min(before - after for before, after in pairwise(places)) >= LABEL
    large = [at for at in places if at not in chart.spare]
    assert min(before - after for before, after in pairwise(large)) >= 2 * LABEL


def test_two_files_of_one_name_are_two_lines(store: Store) -> None:
    _, records = sweep(store, make_drawing_spec(loras=[STYLE, replace(SUBJECT, name="style")]))
    names = [series.name for series in view_chart(make_table(records), "ssim").series]
    assert names == [f"style-{lora.sha256[:6]}" for lora in (STYLE, SUBJECT)]
