import json
import multiprocessing
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from PIL import Image

from evaluation.grid import SweepSpec, plan
from evaluation.identity import rendered_request
from evaluation.store.store import Control, Store, Verdict
from lora_runtime.catalogue import WEIGHTS
from lora_runtime.errors import InvalidInput, NotFound, StorageFailed
from lora_runtime.judges import find_judge
from lora_runtime.png import read_metadata
from lora_runtime.settings import settings
from lora_runtime.values import Rendered, Timing
from tests.drawing_backend import STYLE, SUBJECT
from tests.drawing_backend import make_drawing_spec as spec


def draw(store: Store, spec: SweepSpec, column: int, *, seconds: float = 0.5, shade: int = 9) -> None:
    image = Image.new("RGB", (64, 64), (shade, column, 0))
    rendered = Rendered(
        index=0, image=image, timing=Timing(seconds=seconds, batch_size=3), provenance={"device": "cpu"}
    )
    store.save_image(plan(spec)[column].request, rendered, spec.target)


def test_a_run_survives_a_restart(store: Store) -> None:
    asked = spec(strengths="0.70, 0.1667, -1", seeds=[2**32 - 1], prompts=['"quotes" ünï 🦊\n${alert(1)}'])
    run_id = store.create_run(asked, plan(asked))
    draw(store, asked, 1)
    store.set_verdict(run_id, Verdict(ok=False, summary="The LoRA had no effect.", findings=("One.", "Two.")))
    store.close()

    again = Store.open(settings())
    run = again.run(run_id)
    assert run.spec == asked
    assert run.verdict == Verdict(ok=False, summary="The LoRA had no effect.", findings=("One.", "Two."))
    assert [record.state for record in again.cells(run_id)] == ["pending", "done", "pending", "pending"]
    again.close()


def test_identity_from_plan_equals_identity_from_store(store: Store) -> None:
    asked = spec(loras=[STYLE, SUBJECT], strengths="-1-1 [7]")
    run_id = store.create_run(asked, plan(asked))
    assert [record.cell for record in store.cells(run_id)] == list(plan(asked))
    assert plan(store.run(run_id).spec) == plan(asked)


def test_an_image_belongs_to_its_identity(store: Store) -> None:
    first, second = spec(), spec(loras=[SUBJECT], strengths="0, 0.3")
    one, other = store.create_run(first, plan(first)), store.create_run(second, plan(second))
    draw(store, first, 0)
    states = [[record.state for record in store.cells(run_id)] for run_id in (one, other)]
    assert states == [["done", "pending", "pending"], ["done", "pending"]]
    assert store.cells(one)[0].image == store.cells(other)[0].image


def test_the_file_carries_its_cell(store: Store) -> None:
    asked = spec()
    run_id = store.create_run(asked, plan(asked))
    draw(store, asked, 0)
    draw(store, asked, 1)
    base, half = (record.image for record in store.cells(run_id)[:2])
    assert base is not None
    assert half is not None
    chunk = read_metadata(half)
    assert chunk == {
        "version": 1,
        "identity": plan(asked)[1].identity,
        "prompt": "a red fox",
        "seed": 7,
        "strength": 0.5,
        "width": 64,
        "height": 64,
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "max_sequence_length": WEIGHTS["pocket"].max_sequence_length,
        "text_encoder_out_layers": list(WEIGHTS["pocket"].text_encoder_out_layers),
        "weights": "pocket",
        "precision": "fp32",
        "lora": "style",
        "lora_sha256": STYLE.sha256,
    }
    chunk = read_metadata(base)
    assert chunk is not None
    assert (chunk["lora"], chunk["lora_sha256"], chunk["strength"]) == (None, None, 0)


def test_a_file_deleted_by_hand_is_no_image(store: Store) -> None:
    asked = spec()
    run_id = store.create_run(asked, plan(asked))
    draw(store, asked, 1, shade=1)
    image = store.cells(run_id)[1].image
    assert image is not None
    image.unlink()
    assert store.cells(run_id)[1].state == "pending"
    assert store.image(plan(asked)[1].identity) is None
    draw(store, asked, 1, shade=2)
    again = store.cells(run_id)[1]
    assert again.state == "done"
    assert again.image != image


def test_the_first_image_of_an_identity_stays(store: Store) -> None:
    asked = spec()
    run_id = store.create_run(asked, plan(asked))
    draw(store, asked, 1, shade=1)
    first = store.cells(run_id)[1]
    draw(store, asked, 1, shade=2)
    assert store.cells(run_id)[1] == first


def test_many_threads_finish_the_same_cells(store: Store) -> None:
    asked = spec(strengths="0-1 [4]")
    run_id = store.create_run(asked, plan(asked))
    start = threading.Barrier(8)

    def finish(worker: int) -> None:
        start.wait()
        for column in range(4):
            draw(store, asked, column, shade=worker)
            cell = plan(asked)[column]
            store.save_scores(cell, {"ssim": worker / 10})
            store.save_control(cell.base, STYLE.sha256, Control(difference=0, tolerance=0))
            store.rate(run_id, column, 3, f"worker {worker}")

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(finish, worker) for worker in range(8)]:
            future.result()
    records = store.cells(run_id)
    assert all(record.state == "done" and record.scores.keys() == {"ssim"} for record in records)
    assert len({record.image for record in records}) == 4


def _finish_in_process(start: Barrier, shade: int) -> None:
    store = Store.open(settings())
    start.wait(timeout=60)
    for column in range(3):
        draw(store, spec(), column, shade=shade)
    store.close()


def test_two_processes_finish_the_same_cells(store: Store) -> None:
    run_id = store.create_run(spec(), plan(spec()))
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    other = context.Process(target=_finish_in_process, args=(start, 1))
    other.start()
    _finish_in_process(start, 2)
    other.join()
    assert other.exitcode == 0
    assert [record.state for record in store.cells(run_id)] == ["done"] * 3


def test_a_failure_stays_with_its_cell_until_the_next_try(store: Store) -> None:
    asked = spec()
    run_id = store.create_run(asked, plan(asked))
    store.set_error(run_id, 1, "The model failed on this image.")
    assert [record.state for record in store.cells(run_id)] == ["pending", "failed", "pending"]
    assert store.cells(run_id)[1].error == "The model failed on this image."
    assert store.run(run_id).status == "unfinished"
    draw(store, asked, 0)
    draw(store, asked, 2)
    assert store.run(run_id).status == "failed"
    store.clear_errors(run_id, [1])
    assert store.cells(run_id)[1].state == "pending"
    store.set_error(run_id, 1, "again")
    draw(store, asked, 1)
    assert (store.run(run_id).status, store.cells(run_id)[1].error) == ("done", None)


def test_scores_belong_to_an_image_and_its_reference(store: Store) -> None:
    asked = spec()
    run_id = store.create_run(asked, plan(asked))
    draw(store, asked, 0)
    draw(store, asked, 1)
    cell = plan(asked)[1]
    store.save_scores(cell, {"ssim": 0.5, "mean_difference": 3.0})
    store.save_scores(cell, {"ssim": 0.25})
    assert store.record(run_id, cell).scores == {"ssim": 0.25, "mean_difference": 3.0}
    assert store.record(run_id, plan(asked)[0]).scores == {}
    assert store.control(cell.base, STYLE.sha256) is None
    store.save_control(cell.base, STYLE.sha256, Control(difference=1, tolerance=2))
    assert store.control(cell.base, STYLE.sha256) == Control(difference=1, tolerance=2)


def test_a_rating_belongs_to_the_image_in_every_run_of_its_organization(store: Store) -> None:
    run_id, other = (
        store.create_run(spec(), plan(spec())),
        store.create_run(spec(strengths="0, 0.5"), plan(spec(strengths="0, 0.5"))),
    )
    theirs = store.create_run(spec(), plan(spec()), organization="others")
    store.rate(run_id, 1, 4, "sharp")
    store.rate(other, 1, 5, "sharper <b>")
    store.rate(run_id, 2, None, "no opinion")
    rated = [(record.rating, record.note) for record in store.cells(run_id)]
    assert rated == [(None, ""), (5, "sharper <b>"), (None, "no opinion")]
    assert store.cells(other)[1].rating == 5
    assert store.record(other, plan(spec())[1]).rating == 5
    assert store.cells(theirs)[1].rating is None
    for rating, note, error in [(0, "", InvalidInput), (6, "", InvalidInput), (1, "x" * 2001, InvalidInput)]:
        with pytest.raises(error):
            store.rate(run_id, 1, rating, note)
    with pytest.raises(NotFound, match="no cell 9"):
        store.rate(run_id, 9, 1)


def test_a_vote_belongs_to_its_two_images(store: Store) -> None:
    asked = spec()
    store.create_run(asked, plan(asked))
    base, half, full = (cell.identity for cell in plan(asked))
    for column in range(3):
        draw(store, asked, column)
    store.vote(base, half, "right", voter="ada")
    store.vote(full, half, "neither", organization="others", voter="bob")
    assert [(vote.left, vote.right, vote.outcome, vote.voter) for vote in store.votes([base, half, full])] == [
        (base, half, "right", "ada"),
        (full, half, "neither", "bob"),
    ]
    assert [vote.voter for vote in store.votes([base, half, full], organization="others")] == ["bob"]
    assert store.votes([base, full]) == ()
    with pytest.raises(NotFound, match="no image"):
        store.vote(base, "f" * 64, "tie")
    with pytest.raises(InvalidInput, match="Voter"):
        store.vote(base, half, "tie", voter=" ")


def test_scores_of_two_judges_never_mix(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spec()
    run_id = store.create_run(asked, plan(asked))
    draw(store, asked, 1)
    image = plan(asked)[1].identity
    first = find_judge("pocket")
    assert first is not None
    store.save_own_scores(image, {"clip": 14.6}, judge=first.id)
    store.save_own_scores(image, {"clip": 99.0}, judge="unknown")
    assert store.cells(run_id)[1].scores == {"clip": 14.6}
    another = Path(shutil.copytree(first.folder, tmp_path / "another"))
    monkeypatch.setenv("KLEIN_LAB_CLIP", str(another))
    settings.cache_clear()
    assert store.cells(run_id)[1].scores == {}, "what the other one saw is no score beside its own"
    second = find_judge("pocket")
    assert second is not None
    store.save_own_scores(image, {"clip": 40.3}, judge=second.id)
    assert store.cells(run_id)[1].scores == {"clip": 40.3}
    (another / "config.json").write_text("{}")
    assert store.cells(run_id)[1].scores == {}, "a folder that is none has no scores, and the log still opens"


def test_newest_runs_first(store: Store) -> None:
    ids = [store.create_run(spec(seeds=[seed]), plan(spec(seeds=[seed]))) for seed in range(3)]
    assert [run.id for run in store.runs()] == ids[::-1]
    assert [run.id for run in store.runs(limit=1)] == ids[2:]
    assert [records for _, records in store.history()] == [store.cells(run_id) for run_id in ids[::-1]]
    with pytest.raises(NotFound, match="run-0"):
        store.run("run-0")
    with pytest.raises(NotFound):
        store.cells("run-0")


def test_speed_is_the_median_of_images_like_it(store: Store) -> None:
    assert store.seconds_per_image("pocket", "fp32", 64, 64, 4) is None
    for column, seconds in enumerate((1.0, 9.0, 2.0)):
        draw(store, spec(), column, seconds=seconds)
    assert store.seconds_per_image("pocket", "fp32", 64, 64, 4) == 2.0
    assert store.seconds_per_image("pocket", "fp32", 64, 128, 4) is None


def test_a_full_disk_is_a_storage_error(store: Store, home: Path) -> None:
    asked = spec()
    run_id = store.create_run(asked, plan(asked))
    draw(store, asked, 0)
    (home / "blobs").rename(home / "gone")
    (home / "blobs").write_text("a file where the folder was")
    with pytest.raises(StorageFailed, match="what is done is kept"):
        draw(store, asked, 1)
    (home / "blobs").unlink()
    (home / "gone").rename(home / "blobs")
    assert [record.state for record in store.cells(run_id)] == ["done", "pending", "pending"]


def test_what_is_stored_is_what_was_rendered(store: Store) -> None:
    asked = spec()
    run_id = store.create_run(asked, plan(asked))
    draw(store, asked, 2)
    record = store.cells(run_id)[2]
    assert record.image is not None
    with Image.open(record.image) as image:
        assert image.getpixel((5, 5)) == (9, 2, 0)
        assert image.mode == "RGB"
    assert record.provenance == {"device": "cpu", "batch_size": "3"}
    assert record.seconds == 0.5
    assert json.loads(json.dumps(dict(record.provenance))) == record.provenance
    assert rendered_request(record.cell.request, record.cell.target).strength == Decimal(1)
