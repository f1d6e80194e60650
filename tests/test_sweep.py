import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evaluation.grid import Cell, SweepSpec, make_spec, plan
from evaluation.judge.verdict import compare_pixels
from evaluation.store.store import CellRecord, Control, Store
from evaluation.sweep import CellEnded, Finished, Planned, Stepped, SweepEvent, Verdict, resume_sweep, run_sweep
from lora_runtime.errors import Conflict, NotFound, OutOfMemory, RenderFailed, StorageFailed, Unavailable
from lora_runtime.settings import settings
from lora_runtime.values import RenderRequest
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend
from tests.drawing_backend import make_drawing_spec as spec


def run(asked: SweepSpec, store: Store, backend: DrawingBackend | None = None) -> tuple[str, Verdict]:
    *_, last = run_sweep(asked, backend=backend or DrawingBackend(), store=store)
    assert isinstance(last, Finished)
    return last.run_id, last.verdict


def pixels(records: tuple[CellRecord, ...]) -> list[bytes]:
    found = []
    for record in records:
        assert record.image is not None
        with Image.open(record.image) as image:
            found.append(image.tobytes())
    return found


def statuses(events: list[SweepEvent]) -> list[str]:
    return [event.status for event in events if isinstance(event, CellEnded)]


def fail_at(*strengths: str, error: type[RenderFailed] = RenderFailed) -> Any:
    def fails(request: RenderRequest) -> RenderFailed | None:
        return error("It broke.") if request.lora and request.strength in map(Decimal, strengths) else None

    return fails


def test_each_cell_ends_once_with_its_image_scores_and_time(store: Store) -> None:
    backend = DrawingBackend()
    events = list(run_sweep(spec(), backend=backend, store=store))
    assert isinstance(events[0], Planned)
    assert [record.state for record in events[0].cells] == ["pending"] * 3
    assert isinstance(events[-1], Finished)
    assert not events[-1].stopped
    assert statuses(events) == ["done"] * 3
    ended = [event.record for event in events if isinstance(event, CellEnded)]
    assert [record.cell for record in ended] == list(plan(spec()))
    assert ended == list(store.cells(events[0].run_id))
    assert all(record.seconds == 0.25 for record in ended)
    assert [record.scores["mean_difference"] for record in ended] == sorted(
        record.scores["mean_difference"] for record in ended
    )
    assert ended[0].scores["ssim"] == pytest.approx(1)
    assert next(event for event in events if isinstance(event, Stepped)) == Stepped(done=0, total=3, step=1, steps=4)


def test_a_new_run_is_planned_once_and_not_read_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[SweepSpec] = []

    def count(asked: SweepSpec) -> tuple[Cell, ...]:
        plans.append(asked)
        return plan(asked)

    for module in ("evaluation.sweep", "evaluation.store.read"):
        monkeypatch.setattr(f"{module}.plan", count)
    monkeypatch.setattr("evaluation.store.read.read_spec", plans.append)
    run_id, verdict = run(spec(), store)
    assert (plans, verdict.ok) == ([spec()], True)
    monkeypatch.undo()
    assert [record.cell for record in store.cells(run_id)] == list(plan(spec()))


def test_an_image_is_kept_before_its_event(store: Store) -> None:
    for event in run_sweep(spec(), backend=DrawingBackend(), store=store):
        if isinstance(event, CellEnded):
            other = Store.open(settings())
            assert other.record(event.record.run_id, event.record.cell) == event.record
            other.close()


def test_a_second_run_renders_nothing_and_adds_only_new_values(store: Store) -> None:
    backend = DrawingBackend()
    first, verdict = run(spec(), store, backend)
    assert len(backend.rendered) == 4  # three cells and the control
    second = list(run_sweep(spec(), backend=backend, store=store))
    assert statuses(second) == ["kept"] * 3
    assert len(backend.rendered) == 4
    assert isinstance(second[-1], Finished)
    assert (second[-1].run_id != first, second[-1].verdict) == (True, verdict)
    third = list(run_sweep(spec(strengths="0-1 [5]"), backend=backend, store=store))
    assert sorted(statuses(third)) == ["done"] * 2 + ["kept"] * 3
    assert len(backend.rendered) == 6


def test_the_base_image_is_rendered_once_for_all_loras(store: Store) -> None:
    backend = DrawingBackend()
    run_id, verdict = run(spec(loras=[STYLE, SUBJECT]), store, backend)
    assert verdict.ok
    assert [request.lora for request in backend.rendered].count(None) == 1
    assert len(backend.rendered) == 1 + 2 * 2 + 2  # base, two strengths and a control for each
    records = store.cells(run_id)
    assert records[0].image == records[3].image
    assert all(record.scores for record in records)


def test_the_control_is_next_to_its_base_image(store: Store) -> None:
    backend = DrawingBackend()
    run(spec(strengths="1, 0, 0.5"), store, backend)
    asked = [(request.lora is not None, request.strength) for request in backend.rendered]
    assert asked == [(True, 1), (False, 0), (True, 0), (True, Decimal("0.5"))]


@pytest.mark.parametrize("stop_after", range(9))
def test_closed_after_any_event_and_resumed_the_table_is_the_same(store: Store, stop_after: int) -> None:
    backend = DrawingBackend()
    asked = spec(seeds=[7, 8], strengths="0, 1")
    events = run_sweep(asked, backend=backend, store=store)
    planned = next(events)
    assert isinstance(planned, Planned)
    for _ in range(stop_after):
        next(events)
    events.close()
    assert backend.closed_early == (stop_after > 0)
    list(resume_sweep(planned.run_id, backend=backend, store=store))
    assert len(backend.rendered) == len(set(backend.rendered)) == 5
    records = store.cells(planned.run_id)
    assert store.run(planned.run_id).status == "done"

    undisturbed = DrawingBackend(digest="other")
    other, _ = run(make_spec(undisturbed, loras=[STYLE], prompts=["a red fox"], seeds=[7, 8], strengths="0, 1",
                             width=64, height=64), store, undisturbed)  # fmt: skip
    assert pixels(records) == pixels(store.cells(other))
    assert [record.scores for record in records] == [record.scores for record in store.cells(other)]
    assert store.run(planned.run_id).verdict == store.run(other).verdict


def test_cancel_keeps_what_is_done_and_leaves_the_rest_pending(store: Store) -> None:
    cancel = threading.Event()
    events: list[SweepEvent] = []
    for event in run_sweep(spec(strengths="0-1 [5]"), backend=DrawingBackend(), store=store, cancel=cancel):
        events.append(event)
        if len(statuses(events)) == 2:
            cancel.set()
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.stopped
    assert [record.state for record in store.cells(finished.run_id)] == ["done"] * 2 + ["pending"] * 3
    assert store.run(finished.run_id).status == "unfinished"
    resumed = list(resume_sweep(finished.run_id, backend=DrawingBackend(), store=store))
    assert statuses(resumed) == ["kept"] * 2 + ["done"] * 3


def test_a_failed_cell_stands_alone_and_is_tried_again(store: Store) -> None:
    events = list(run_sweep(spec(), backend=DrawingBackend(fails=fail_at("0.5", error=OutOfMemory)), store=store))
    assert statuses(events) == ["done", "failed", "done"]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert store.cells(finished.run_id)[1].error == "It broke."
    resumed = list(resume_sweep(finished.run_id, backend=DrawingBackend(), store=store))
    assert statuses(resumed) == ["kept", "kept", "done"]
    assert store.run(finished.run_id).status == "done"


def test_a_failed_cell_that_is_cancelled_is_pending_again(store: Store) -> None:
    run_id, _ = run(spec(), store, DrawingBackend(fails=fail_at("0.5")))
    cancel = threading.Event()
    cancel.set()
    list(resume_sweep(run_id, backend=DrawingBackend(), store=store, cancel=cancel))
    assert [record.state for record in store.cells(run_id)] == ["done", "pending", "done"]


def test_a_deleted_image_is_rendered_again(store: Store) -> None:
    backend = DrawingBackend()
    run_id, _ = run(spec(), store, backend)
    image = store.cells(run_id)[1].image
    assert image is not None
    image.unlink()
    resumed = list(resume_sweep(run_id, backend=backend, store=store))
    assert sorted(statuses(resumed)) == ["done", "kept", "kept"]
    assert len(backend.rendered) == 5


def test_a_full_disk_ends_the_run_and_loses_nothing(store: Store, home: Path) -> None:
    backend = DrawingBackend()
    events = run_sweep(spec(), backend=backend, store=store)
    planned = next(events)
    assert isinstance(planned, Planned)
    while not isinstance(next(events), CellEnded):
        pass
    (home / "blobs").rename(home / "elsewhere")
    (home / "blobs").write_text("full")
    with pytest.raises(StorageFailed):
        list(events)
    assert backend.closed_early
    (home / "blobs").unlink()
    (home / "elsewhere").rename(home / "blobs")
    assert [record.state for record in store.cells(planned.run_id)] == ["done", "pending", "pending"]


def test_other_weights_or_another_backend_are_refused(store: Store) -> None:
    run_id, _ = run(spec(), store, DrawingBackend(fails=fail_at("1")))
    with pytest.raises(Conflict, match="have changed since"):
        list(resume_sweep(run_id, backend=DrawingBackend(digest="d2"), store=store))
    remote = DrawingBackend()
    remote.name = "remote"
    with pytest.raises(Conflict, match="renders on the drawing backend"):
        list(resume_sweep(run_id, backend=remote, store=store))
    gone = DrawingBackend()
    gone.models = list  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="does not run here"):
        list(resume_sweep(run_id, backend=gone, store=store))
    with pytest.raises(NotFound):
        list(resume_sweep("run-0", backend=remote, store=store))
    assert store.cells(run_id)[2].state == "failed"


def test_two_sweeps_at_once_share_their_cells(store: Store) -> None:
    results: list[str] = []

    def sweep() -> None:
        results.append(run(spec(strengths="0-1 [5]"), store, DrawingBackend())[0])

    threads = [threading.Thread(target=sweep) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    images = [[record.image for record in store.cells(run_id)] for run_id in results]
    assert len(images) == 3
    assert images[0] == images[1] == images[2]


_SWEEP = """
import sys
from pathlib import Path
from tests.drawing_backend import STYLE, DrawingBackend
from evaluation.grid import make_spec
from evaluation.store.store import Store
from evaluation.sweep import run_sweep
from lora_runtime.settings import settings

backend = DrawingBackend(delay_s=0.05, log=Path(sys.argv[1]))
spec = make_spec(backend, loras=[STYLE], prompts=["fox"], strengths="0-4 [9]", seeds=[7], width=64, height=64)
for event in run_sweep(spec, backend=backend, store=Store.open(settings())):
    print(type(event).__name__, flush=True)
"""


def test_killed_hard_and_resumed_nothing_kept_is_rendered_twice(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _SWEEP, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        ended = 0
        while ended < 3:
            ended += process.stdout.readline().strip() == "CellEnded"
        process.send_signal(signal.SIGKILL)
    (run_,) = store.runs()
    kept = {record.cell.request.strength for record in store.cells(run_.id) if record.state == "done"}
    assert 3 <= len(kept) < 9
    before = log.read_text().splitlines()
    assert len(before) - len(kept) <= 2  # the one under way, and the control
    backend = DrawingBackend(log=log)
    list(resume_sweep(run_.id, backend=backend, store=store))
    assert kept.isdisjoint(request.strength for request in backend.rendered if request.strength)
    assert len(backend.rendered) <= 9 - len(kept) + 1
    assert store.run(run_.id).status == "done"
    assert store.run(run_.id).verdict == Verdict(
        ok=True,
        summary="Every strength acted, and strength 0 is the base model.",
        findings=("style at strength 0 equals the base image, pixel for pixel.",),
    )


# The verdict


def test_green_when_every_strength_acted(store: Store) -> None:
    run_id, verdict = run(spec(), store)
    assert verdict.ok is True
    assert verdict.summary == "Every strength acted, and strength 0 is the base model."
    assert verdict.findings == ("style at strength 0 equals the base image, pixel for pixel.",)
    assert store.run(run_id).verdict == verdict


def test_red_when_the_lora_does_nothing(store: Store) -> None:
    _, verdict = run(spec(), store, DrawingBackend(acts=lambda _: Decimal(0)))
    assert verdict.ok is False
    assert verdict.summary == "The LoRA had no effect."
    assert verdict.findings == (
        "The LoRA had no effect: strengths 0.50 and 1.00 gave the same picture as strength 0 "
        '(style, seed 7, "a red fox").',
    )


def test_red_when_two_neighbours_are_the_same(store: Store) -> None:
    """Incumbents show the last image in every column, or the first value twice."""
    stuck = DrawingBackend(acts=lambda strength: min(strength, Decimal("0.5")))
    _, verdict = run(spec(strengths="1, 0.5, 0.25"), store, stuck)
    assert verdict.ok is False
    assert verdict.summary == "Some strengths gave the same picture."
    assert verdict.findings == ('Strengths 0.50 and 1.00 gave the same picture (style, seed 7, "a red fox").',)


def test_red_when_strength_0_is_not_the_base(store: Store) -> None:
    _, verdict = run(spec(), store, DrawingBackend(attach_changes=1))
    assert verdict.ok is False
    assert verdict.summary == "Strength 0 is not the base model."
    assert "with style attached at strength 0" in verdict.findings[0]
    assert "up to 1 of 255" in verdict.findings[0]


@pytest.mark.parametrize(("device", "change", "ok"), [("cuda:0", 2, True), ("cuda:0", 4, False), ("cpu", 2, False)])
def test_rounding_of_other_kernels_is_no_fault_but_said(store: Store, device: str, change: int, ok: bool) -> None:
    _, verdict = run(spec(), store, DrawingBackend(attach_changes=change, device=device))
    assert verdict.ok is ok
    assert f"by up to {change} of 255" in verdict.findings[0]


@pytest.mark.parametrize(("device", "batch_size", "tolerance"), [("cpu", "8", 0), ("cpu", "1", 2), ("cuda:0", "8", 2)])
def test_only_a_cpu_and_one_batch_size_promise_every_pixel(device: str, batch_size: str, tolerance: int) -> None:
    image = Image.new("RGB", (8, 8))
    other = image.copy()
    other.putpixel((3, 3), (0, 1, 0))
    made = {"device": "cpu", "batch_size": "8"}
    found = compare_pixels(image, made, other, {"device": device, "batch_size": batch_size})
    assert found == Control(difference=1, tolerance=tolerance)


def test_one_dead_row_is_enough(store: Store) -> None:
    dead = DrawingBackend()
    draw = dead._draw
    dead._draw = lambda index, request: draw(  # type: ignore[method-assign]
        index, request if request.seed == 7 else RenderRequest(**{**vars(request), "lora": None})
    )
    _, verdict = run(spec(seeds=[7, 8]), store, dead)
    assert verdict.ok is False
    assert len(verdict.findings) == 1
    assert "seed 8" in verdict.findings[0]


@pytest.mark.parametrize(
    ("changes", "fails", "said"),
    [
        ({"strengths": "0"}, (), "no two strengths"),
        ({"strengths": "0, 1"}, ("1",), "no two strengths"),
        ({"strengths": "1", "base_column": False}, (), "no two strengths"),
        ({"strengths": "0, 0.5, 1"}, ("0",), "was not checked"),
    ],
)
def test_not_judged_when_there_is_too_little(
    store: Store, changes: dict[str, Any], fails: tuple[str, ...], said: str
) -> None:
    _, verdict = run(spec(**changes), store, DrawingBackend(fails=fail_at(*fails)))
    assert verdict.ok is None
    assert said in verdict.summary


def test_without_the_base_column_neighbours_are_judged(store: Store) -> None:
    backend = DrawingBackend()
    _, verdict = run(spec(strengths="0.5, 1", base_column=False), store, backend)
    assert verdict == Verdict(ok=True, summary="Every strength acted.")
    assert len(backend.rendered) == 2  # no control


def test_a_missing_base_image_leaves_the_control_open(store: Store) -> None:
    broken = DrawingBackend(fails=lambda request: None if request.lora else RenderFailed("It broke."))
    run_id, verdict = run(spec(), store, broken)
    assert verdict.ok is None
    assert "Resume the run" in verdict.findings[0]
    *_, last = resume_sweep(run_id, backend=DrawingBackend(), store=store)
    assert isinstance(last, Finished)
    assert last.verdict.ok is True


def test_the_generator_is_closed_by_hand(store: Store) -> None:
    assert isinstance(run_sweep(spec(), backend=DrawingBackend(), store=store), Generator)
