"""The log as one query: what a view shows, counts, sorts and groups; on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from evaluation.axes import SweepSpec
from evaluation.grid import plan
from evaluation.log import Page, find_record, read_behind, read_key, read_keys, read_log_table, read_page
from evaluation.log_search import LogView, list_filters, read_view, sort_view
from evaluation.report import columns
from evaluation.report.columns import COLUMNS, Column, Filter, make_table, show_record
from evaluation.report.files import write_table
from evaluation.store import planned
from evaluation.store.rows import CellRow
from evaluation.store.store import Store
from evaluation.sweep import Finished, resume_sweep, run_sweep
from evaluation.tabs.comparison_form import view_bar, view_log
from lora_runtime.errors import NotFound, RenderFailed
from lora_runtime.settings import settings
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend, make_drawing_spec
from tests.postgres import serve_postgres

RUNS: list[str] = []


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Two prompts of `style`, rated and noted, in run b; two seeds of `subject` before that, one image failed, in a.

    The first image of both is the same.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KLEIN_LAB_HOME", str(tmp_path_factory.mktemp("log")))
        if request.param == "postgresql":
            environment.setenv("DATABASE_URL", request.getfixturevalue("postgres"))
        settings.cache_clear()
        store = Store.open(settings())
    settings.cache_clear()
    fill(store)
    yield store
    store.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with serve_postgres() as url:
        yield url


def fill(store: Store) -> None:
    backend = DrawingBackend(
        fails=lambda request: RenderFailed("Out of Memory.") if request.seed == 8 and request.strength else None
    )
    subject = make_drawing_spec(loras=[SUBJECT], seeds=[7, 8], strengths="0, 1")
    style = make_drawing_spec(prompts=["a red fox", "ein BLAUER Bär, 100%"], strengths="0, 0.7, 1")
    other = make_drawing_spec(prompts=["of somebody else"], strengths="0")
    RUNS[:] = []
    for spec, origin, organization in ((subject, "api", "local"), (style, "sweep", "local"), (other, "api", "other")):
        events = list(run_sweep(spec, backend=backend, store=store, origin=origin, organization=organization))  # type: ignore[arg-type]
        RUNS.append(events[-1].run_id)  # type: ignore[union-attr]
    for position in (1, 2, 4, 5):
        store.rate(RUNS[1], position, 4, "Größe stimmt" if position == 4 else "")
    for record in store.cells(RUNS[1]):
        store.save_own_scores(record.cell.identity, {"clip": 15.0 - record.cell.column})


def sweep(store: Store, spec: SweepSpec, **run: Any) -> str:
    *_, finished = run_sweep(spec, backend=DrawingBackend(), store=store, **run)
    assert isinstance(finished, Finished)
    return finished.run_id


def page_of(store: Store, **view: Any) -> Page:
    return read_page(store, LogView(**view))


def keys_of(page: Page) -> list[tuple[str, int]]:
    found = [read_key(row.id) for group in page.groups for row in group.rows]
    return [("ab"[RUNS.index(run_id)], position) for run_id, position in found]


def counts(page: Page, name: str) -> list[tuple[str, int]]:
    return [(option.words, option.count) for option in page.options[name]]


A, B = [("a", n) for n in range(4)], [("b", n) for n in range(6)]


@pytest.mark.parametrize(
    ("view", "keys"),
    [
        ({}, [*B, *A[1:]]),
        ({"group": "lora", "rows": 99}, [*B, *A]),
        ({"group": "strength", "rows": 3}, [("b", 0), ("b", 3), ("a", 2)]),
        ({"text": "a red fox subject"}, A),
        ({"text": "bär  blauer"}, B[3:]),
        ({"text": "100%"}, B[3:]),
        ({"text": "100_"}, []),
        ({"text": "GRÖSSE STIMMT"}, []),
        ({"text": "GRÖße"}, [("b", 4)]),
        ({"text": "MEMORY"}, [("a", 3)]),
        ({"chosen": {"lora": SUBJECT.sha256}}, A),
        ({"chosen": {"rating": "3"}}, [("b", 1), ("b", 2), ("b", 4), ("b", 5)]),
        ({"chosen": {"rating": "5"}}, []),
        ({"chosen": {"rating": "none", "seed": "8"}}, A[2:]),
        ({"chosen": {"seed": "no number"}}, []),
        ({"chosen": {"state": "failed"}}, [("a", 3)]),
        ({"chosen": {"origin": "api"}}, A),
        ({"chosen": {"precision": "fp32", "backend": "drawing", "weights": "pocket"}, "text": "subject"}, A),
        ({"low": Decimal("0.7"), "high": Decimal("0.9")}, [("b", 1), ("b", 4)]),
        ({"sort": "strength", "text": "bär"}, [("b", 5), ("b", 4), ("b", 3)]),
        ({"sort": "clip", "descending": False, "rows": 4}, [("b", 2), ("b", 5), ("b", 1), ("b", 4)]),
        ({"sort": "rating", "rows": 5}, [("b", 1), ("b", 2), ("b", 4), ("b", 5), ("b", 0)]),
        ({"sort": "created", "descending": False, "chosen": {"seed": "8"}}, A[2:]),
    ],
)  # fmt: skip
def test_a_view_shows_what_it_names(log: Store, view: dict[str, Any], keys: list[tuple[str, int]]) -> None:
    page = page_of(log, **view)
    assert keys_of(page) == keys
    assert len(read_keys(log, LogView(**view))) == page.shown, "what is counted is what is listed"
    assert page.left == page.rows - len(keys)
    assert page.total == 9


def test_options_are_those_that_would_show_something(log: Store) -> None:
    everything = page_of(log)
    assert counts(everything, "lora") == [("style", 6), ("subject", 4)], "one image has both"
    assert counts(everything, "rating") == [
        ("★★★★ or more", 4), ("★★★ or more", 4), ("★★ or more", 4), ("★ or more", 4), ("not rated", 5),
    ]  # fmt: skip
    assert counts(everything, "seed") == [("7", 7), ("8", 2)]
    assert [option.value for option in everything.options["run"]] == [RUNS[1], RUNS[0]], "the newest first"
    assert everything.options["run"][0].words.endswith(" UTC · style · a red fox")
    chosen = page_of(log, chosen={"seed": "8"})
    assert counts(chosen, "lora") == [("subject", 2)], "style has no seed 8"
    assert counts(chosen, "seed") == [("7", 7), ("8", 2)], "its own choice can still be changed"
    gone = page_of(log, chosen={"weights": "deleted"})
    assert ("deleted", 0) in counts(gone, "weights")
    for name in list_filters():
        for option in everything.options[name]:
            assert page_of(log, chosen={name: option.value}).shown == option.count > 0


def test_groups_have_their_counts_and_means(log: Store) -> None:
    loras = page_of(log, group="lora").groups
    assert [(group.title, len(group.rows)) for group in loras] == [("style", 6), ("subject", 4)]
    assert loras[0].facts[:2] == ["6 images", "Fit 13.5"]
    assert loras[0].facts[-1] == "★ 4.0 (4 rated)"
    strengths = page_of(log, group="strength", rows=9).groups
    assert [group.title for group in strengths] == ["Strength 0 · base", "Strength 0.7", "Strength 1"]
    assert (len(strengths[2].rows), strengths[2].facts[0]) == (4, "4 images")
    (first,) = page_of(log, group="strength", rows=1).groups
    assert (len(first.rows), first.facts[0]) == (1, "3 images"), "facts are of the whole group"
    assert [group.title for group in page_of(log, group="seed").groups] == ["Seed 7", "Seed 8"]
    assert page_of(log, group="run").groups[0].title.endswith(" · style · a red fox")


def test_a_table_of_the_log_says_what_the_records_say(log: Store) -> None:
    keys = read_keys(log, LogView(), every=True)
    assert len(keys) == 10
    found = read_log_table(log, keys)
    records = [replace(record, image=Path(record.image.name) if record.image else None) for record in log.records(keys)]
    known = make_table(records)
    assert list(found.columns) == list(known.columns)
    for name in found:
        assert found[name].equals(known[name]), name


def test_an_organization_sees_its_own(log: Store) -> None:
    page = read_page(log, LogView(), organization="other")
    assert (page.shown, [option.words for option in page.options["prompt"]]) == (1, ["of somebody else"])
    with pytest.raises(NotFound):
        find_record(log, f"{RUNS[2]}/0", organization="local")
    assert find_record(log, f"{RUNS[1]}/2").cell.position == 2
    for wrong in (f"{RUNS[1]}/6", "run-0/0", "x", "", "run-1/", "run-1/x", "/1", f"{RUNS[1]}/{'9' * 30}"):
        with pytest.raises(NotFound):
            find_record(log, wrong)


def test_a_column_is_one_record(log: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Column(
        name="batch", label="Batch size", kind="text", value=lambda record: record.provenance.get("batch_size"),
        sql=CellRow.provenance["batch_size"].as_string(), heading="Batch", filter=Filter(label="Batch"), group="batch",
        setting="Batch", told=True,
    )  # fmt: skip
    monkeypatch.setattr(columns, "COLUMNS", {**COLUMNS, "batch": batch})
    page = page_of(log, chosen={"batch": "1"}, group="batch", sort="batch")
    assert page.shown == 8, "all but the image that failed"
    assert page.groups[0].key == "1"
    assert [pill.label for pill in view_bar(page).pills][-2:] == ["Batch", "Run"]
    shown = view_log(page)
    assert shown.heads[-1].words == "Batch"
    assert shown.groups[0].rows[0].cells[-1].text == "1"
    keys = read_keys(log, LogView(chosen={"batch": "1"}))
    table = read_log_table(log, keys)
    assert write_table(table, ".csv").decode("utf-8-sig").splitlines()[0].endswith(",batch")
    assert b'"batch": "1"' in write_table(table, ".jsonl")
    assert show_record(log.records(keys[:1])[0])["batch"] == "1"


def test_an_image_that_several_runs_show_is_one_row(log: Store) -> None:
    row, failed = read_behind(log, LogView(), [(RUNS[1], 0), (RUNS[0], 3), (RUNS[2], 0), ("run-0", 0)])
    assert (row, failed) == ([(RUNS[1], 0), (RUNS[0], 0)], [(RUNS[0], 3)]), "the newest run first"
    assert read_behind(log, LogView(chosen={"run": RUNS[0]}), [(RUNS[0], 0)]) == ([(RUNS[0], 0)],)
    assert read_behind(log, LogView(group="lora"), [(RUNS[0], 0)]) == ([(RUNS[0], 0)],)
    assert read_behind(log, LogView(text="nothing"), [(RUNS[0], 0)]) == ([(RUNS[0], 0)],), "it was drawn before"
    for run_id, images in zip(RUNS, (4, 6), strict=False):
        assert len(read_keys(log, LogView(chosen={"run": run_id}))) == images
    table = read_log_table(log, read_keys(log, LogView()))
    assert len(table) == table["identity"].nunique() == 9


def test_what_others_write_meanwhile_is_there_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes have a store each; what was planned is kept in memory, whatever can change is not."""
    monkeypatch.setattr(planned, "MOST_CELLS", 3)
    with closing(Store.open(settings())) as mine, closing(Store.open(settings())) as theirs:

        def see(**view: Any) -> list[int]:
            assert len(read_keys(mine, LogView(), organization="other")) == 3
            return [position for _, position in read_keys(mine, LogView(**view))]

        sweep(theirs, make_drawing_spec(), organization="other")
        assert see() == []
        spec = make_drawing_spec(seeds=[8])
        run_id = theirs.create_run(spec, plan(spec))
        assert see() == [], "nothing was tried"
        theirs.set_error(run_id, 1, "Out of memory.")
        assert (see(), see(text="memory"), see(chosen={"state": "failed"})) == ([1], [1], [1])
        for _ in resume_sweep(run_id, backend=DrawingBackend(), store=theirs):
            pass
        assert (see(), see(text="memory")) == ([0, 1, 2], [])
        theirs.rate(run_id, 2, 5, "Schön")
        assert (see(text="schön"), see(chosen={"rating": "5"})) == ([2], [2])
        theirs.save_own_scores(theirs.cells(run_id)[1].cell.identity, {"clip": 9.0})
        assert see(sort="clip") == [1, 0, 2]
        theirs.delete_cells([(run_id, 1)])
        assert see() == [0, 2]
        theirs.delete_cells([(run_id, 0), (run_id, 2)])
        theirs.purge(datetime.now(UTC) + timedelta(days=1))
        assert see() == []
        sweep(theirs, spec)
        assert see() == [0, 1, 2]


def test_what_the_page_says_is_read_with_care() -> None:
    asked = {"lora": "style", "seed": "", "low": "0,5", "high": "nonsense", "group": "everything", "evil": "x"}
    view = read_view(LogView(rows=600, sort="seed"), asked)
    known = (dict(view.chosen), view.low, view.high, view.group, view.rows)
    assert known == ({"lora": "style"}, Decimal("0.5"), None, "", 60)
    assert view.is_filtered
    assert not LogView(text="  ").is_filtered
    assert read_view(LogView(), {"low": "NaN"}).low is None
    assert sort_view(view, "no such column") == view
    assert sort_view(sort_view(view, "clip"), "clip").descending


def test_two_files_of_one_name_are_told_apart(store: Store) -> None:
    for lora in (STYLE, replace(SUBJECT, name="style")):
        sweep(store, make_drawing_spec(loras=[lora]))
    called = {f"style-{ref.sha256[:6]}" for ref in (STYLE, SUBJECT)}
    page = page_of(store, group="lora")
    assert {group.title for group in page.groups} == {option.words for option in page.options["lora"]} == called
    assert {row.values["lora"] for group in page.groups for row in group.rows} == called
    assert set(read_log_table(store, read_keys(store, LogView()))["lora"]) == called
