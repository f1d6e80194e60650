"""Delete, undo, purge: what leaves the log, what comes back, what goes for good and what others still need."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from evaluation.axes import SweepSpec
from evaluation.grid import plan
from evaluation.log import read_keys
from evaluation.log_search import LogView
from evaluation.store.store import Store
from evaluation.sweep import CellEnded, Finished, resume_sweep, run_sweep
from tests.drawing_backend import SUBJECT, DrawingBackend, make_drawing_spec

LATER = datetime.now(UTC) + timedelta(days=2)


def sweep(store: Store, spec: SweepSpec, *, organization: str = "local") -> str:
    *_, finished = run_sweep(spec, backend=DrawingBackend(), store=store, organization=organization)
    assert isinstance(finished, Finished)
    return finished.run_id


def keys(store: Store, organization: str = "local") -> list[tuple[str, int]]:
    return list(read_keys(store, LogView(), organization=organization))


def files(home: Path) -> int:
    return len(list((home / "blobs").glob("??/*.png")))


def test_a_deleted_cell_leaves_the_log_and_comes_back(store: Store) -> None:
    run_id = sweep(store, make_drawing_spec())
    store.rate(run_id, 1, 5, "good")
    assert store.delete_cells([(run_id, 1), (run_id, 1), (run_id, 99), ("run-0", 0)]) == 1
    assert keys(store) == [(run_id, 0), (run_id, 2)]
    whole = store.cells(run_id)
    assert [record.deleted for record in whole] == [False, True, False]
    assert whole[1].image is not None, "the grid of its sweep still shows it"
    assert store.run(run_id).status == "done"
    assert store.restore_cells([(run_id, 1), (run_id, 2)]) == 1
    assert keys(store) == [(run_id, 0), (run_id, 1), (run_id, 2)]
    assert store.cells(run_id)[1].rating == 5


def test_the_mark_of_a_log_is_another_one_after_each_change_of_it(store: Store) -> None:
    marks = [store.log_mark(organization="local")]
    run_id = sweep(store, make_drawing_spec())
    marks.append(store.log_mark(organization="local"))
    store.delete_cells([(run_id, 1)])
    marks.append(store.log_mark(organization="local"))
    waiting = store.create_run(make_drawing_spec(seeds=[8]), plan(make_drawing_spec(seeds=[8])))
    assert store.log_mark(organization="local") == marks[-1], "what has not been tried is not in the log"
    store.set_error(waiting, 0, "Out of memory.")
    marks.append(store.log_mark(organization="local"))
    store.save_own_scores(store.cells(run_id)[0].cell.identity, {"clip": 12.5})
    marks.append(store.log_mark(organization="local"))
    assert len(set(marks)) == len(marks)
    sweep(store, make_drawing_spec(seeds=[9]), organization="others")
    assert store.log_mark(organization="local") == marks[-1]
    store.clear_errors(waiting, [0])
    assert store.log_mark(organization="local") != marks[-1]


def test_only_an_organizations_own_rows_are_deleted_or_rated(store: Store) -> None:
    mine, theirs = (sweep(store, make_drawing_spec(seeds=[seed]), organization=f"o{seed}") for seed in (1, 2))
    assert store.delete_cells([(mine, 0), (theirs, 0)], organization="o1") == 1
    assert keys(store, "o1") == [(mine, 1), (mine, 2)]
    assert keys(store, "o2") == [(theirs, 0), (theirs, 1), (theirs, 2)]
    assert store.restore_cells([(mine, 0)], organization="o2") == 0
    with pytest.raises(Exception, match="somebody else's"):
        store.rate(theirs, 0, 1, organization="o1")


def test_thousands_of_rows_at_once(store: Store) -> None:
    spec = make_drawing_spec(strengths="0", seeds=range(400))
    runs = [store.create_run(spec, plan(spec)) for _ in range(3)]
    every = [(run_id, position) for run_id in runs for position in range(400)]
    assert store.delete_cells(every) == 1200
    assert store.history() == ()
    assert store.restore_cells(every) == 1200


def test_purge_waits_for_its_time(store: Store, home: Path) -> None:
    run_id = sweep(store, make_drawing_spec())
    store.delete_cells([(run_id, 2)])
    assert store.purge(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert store.restore_cells([(run_id, 2)]) == 1
    assert files(home) == 3


def test_purge_removes_rows_ratings_and_files(store: Store, home: Path) -> None:
    run_id = sweep(store, make_drawing_spec())
    store.rate(run_id, 2, 1, "no")
    store.delete_cells([(run_id, 2)])
    assert store.purge(LATER) == 1
    assert files(home) == 2
    gone = store.cells(run_id)[2]
    assert (gone.state, gone.image, gone.rating, gone.note, gone.scores) == ("pending", None, None, "", {})
    assert len(store.cells(run_id)) == 3, "the grid keeps its shape"
    assert store.purge(LATER) == 0
    ended = [
        event for event in resume_sweep(run_id, backend=DrawingBackend(), store=store) if isinstance(event, CellEnded)
    ]
    assert [event.status for event in ended] == ["kept", "kept", "done"]


def test_opinions_go_with_the_last_run_of_an_organization_that_shows_the_image(store: Store) -> None:
    mine, again, theirs = (sweep(store, make_drawing_spec(), organization=name) for name in ("a", "a", "b"))
    base, half, full = (record.cell.identity for record in store.cells(mine))
    for run_id in (mine, theirs):
        store.rate(run_id, 1, 4)
    for organization in ("a", "b"):
        store.vote(base, half, "right", organization=organization)
        store.vote(base, full, "right", organization=organization)
    store.save_embeddings("judge@1", {identity: np.ones(3, dtype=np.float32) for identity in (base, half)})
    store.delete_cells([(mine, 1)])
    store.purge(LATER)
    assert store.cells(again)[1].rating == 4
    assert len(store.votes([base, half, full], organization="a")) == 2
    store.delete_cells([(again, 1)])
    store.purge(LATER)
    assert store.cells(again)[1].rating is None
    assert [vote.right for vote in store.votes([base, half, full], organization="a")] == [full]
    assert store.cells(theirs)[1].rating == 4
    assert len(store.votes([base, half, full], organization="b")) == 2
    store.delete_cells([(theirs, 1)])
    store.purge(LATER)
    assert {vote.right for vote in store.votes([base, half, full])} == {full}
    assert set(store.embeddings([base, half], "judge@1")) == {base}


def test_a_run_goes_when_all_its_cells_have_gone(store: Store, home: Path) -> None:
    run_id, other = sweep(store, make_drawing_spec()), sweep(store, make_drawing_spec(seeds=[8]))
    store.delete_cells([(run_id, position) for position in range(3)])
    assert [run.id for run in store.runs()] == [other]
    assert store.run(run_id).id == run_id, "until then whoever has its id may look"
    assert store.purge(LATER) == 3
    with pytest.raises(Exception, match="no run"):
        store.run(run_id)
    assert files(home) == 3
    assert store.run(other).status == "done"


@pytest.mark.parametrize("delete_base", [True, False])
def test_an_image_that_others_need_stays(store: Store, home: Path, delete_base: bool) -> None:
    """The base image is shared by two LoRAs, and is what the others are compared with."""
    first, second = sweep(store, make_drawing_spec()), sweep(store, make_drawing_spec(loras=[SUBJECT]))
    assert files(home) == 5
    store.delete_cells([(first, position) for position in (range(1) if delete_base else range(3))])
    assert store.purge(LATER) == (0 if delete_base else 2)
    assert [record.state for record in store.cells(second)] == ["done"] * 3
    assert all("ssim" in record.scores for record in store.cells(second))
    if delete_base:
        assert "ssim" in store.cells(first)[1].scores, "what was measured is not lost with the row of the base"


def test_a_base_that_only_deleted_images_were_compared_with_goes_too(store: Store, home: Path) -> None:
    run_id = sweep(store, make_drawing_spec())
    store.delete_cells([(run_id, 0)])
    assert store.purge(LATER) == 0
    store.delete_cells([(run_id, 1), (run_id, 2)])
    assert store.purge(LATER) == 3
    assert files(home) == 0


def test_a_log_of_others_is_not_in_mine(store: Store) -> None:
    mine = sweep(store, make_drawing_spec(), organization="me")
    sweep(store, make_drawing_spec(seeds=[9]), organization="you")
    assert {run_id for run_id, _ in keys(store, "me")} == {mine}
    assert len(keys(store, "you")) == 3
    assert store.records([*keys(store, "me")[1::-1], ("run-0", 0), (mine, 99)]) == store.cells(mine)[1::-1]
