"""Who renders what: the rules by which requests are dealt to engines."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from queue import SimpleQueue
from threading import Event

import pytest

from lora_runtime.backends.dealing import ALONE_AFTER, ROWS, Call, DealtJob, Seat, choose_deal, find_steal
from lora_runtime.values import LoraRef, RenderRequest

POCKET = RenderRequest(
    weights="pocket", precision="bf16", prompt="a cat", seed=1, width=64, height=64, steps=4, guidance=1.0
)
RUNS = frozenset({("pocket", "bf16"), ("pocket-base", "bf16")})


def make_job(lora: str | None = None, **changes: object) -> DealtJob:
    ref = LoraRef(name=lora, path=Path(f"{lora}.safetensors"), sha256=lora) if lora else None
    request = replace(POCKET, lora=ref, strength=Decimal(1 if lora else 0), **changes)  # type: ignore[arg-type]
    return DealtJob(index=0, request=request, events=SimpleQueue(), cancel=Event())


def make_seat(name: str, *, seconds: float | None = None, rows: int = ROWS, loras: Sequence[str] = ()) -> Seat:
    seat = Seat(name=name, runs=RUNS)
    key = make_job().key
    seat.rows[key] = rows
    if seconds is not None:
        seat.seconds[key] = seconds
        seat.loaded["pocket", "bf16"] = None
    for lora in loras:
        seat.attached[lora] = 1
    return seat


def deal_all(queue: list[DealtJob], seats: Sequence[Seat]) -> Counter[str]:
    """Deal while somebody has room, as the cluster does; return how many each got."""
    counts: Counter[str] = Counter()
    while dealt := choose_deal(queue, seats):
        seat, jobs = dealt
        assert jobs
        assert len({job.key for job in jobs}) == 1
        seat.calls.append(Call(jobs=jobs))
        for job in jobs:
            seat.remember(job, 1)
            queue.remove(job)
        counts[seat.name] += len(jobs)
    return counts


def test_nobody_is_dealt_more_than_waits_for_one_batch() -> None:
    queue = [make_job() for _ in range(100)]
    assert deal_all(queue, [make_seat("a", rows=16), make_seat("b", rows=16)]) == {"a": 16, "b": 16}
    assert len(queue) == 68


def test_each_gets_its_share_by_measured_speed() -> None:
    fast, slow = make_seat("fast", seconds=0.1, rows=64), make_seat("slow", seconds=0.9, rows=64)
    assert deal_all([make_job() for _ in range(40)], [slow, fast])["fast"] >= 34


def test_all_are_done_at_the_same_time_whoever_begins_first() -> None:
    first, second = (make_seat(name, seconds=1, rows=64) for name in ("first", "second"))
    queue = [make_job() for _ in range(200)]
    assert deal_all(queue, [first, second]) == {"first": 64, "second": 64}
    for seat in (first, second):
        for job in seat.calls[0].jobs:
            job.begun = True
        assert deal_all(queue, [first, second]) == {seat.name: 36}
        assert len(seat.calls) == 2
    assert not queue


def test_a_lora_goes_where_it_is_attached_and_waits_for_nobody() -> None:
    here, there = make_seat("here", seconds=1, loras=["x"]), make_seat("there", seconds=1, loras=["y"])
    assert deal_all([make_job("x"), make_job("y")], [there, here]) == {"here": 1, "there": 1}
    assert {lora for job in here.jobs for lora in [job.lora]} == {"x"}
    full, idle = make_seat("full", seconds=1, rows=1, loras=["x"]), make_seat("idle", seconds=1)
    full.calls.append(Call(jobs=(make_job("x"),)))
    assert choose_deal([make_job("x")], [full, idle])[0] is idle  # type: ignore[index]


def test_weights_go_where_they_are_loaded() -> None:
    loaded, empty = make_seat("loaded", seconds=1), make_seat("empty")
    assert choose_deal([make_job()], [empty, loaded])[0] is loaded  # type: ignore[index]


def test_the_oldest_goes_first_whatever_is_attached() -> None:
    seat = make_seat("a", rows=2, loras=["x"])
    oldest, *others = [make_job("y"), *(make_job("x") for _ in range(9))]
    _, jobs = choose_deal([oldest, *others], [seat])  # type: ignore[misc]
    assert jobs[0] is oldest
    assert jobs[1] in others


def test_what_nobody_can_run_keeps_nobody_waiting() -> None:
    seat = make_seat("a")
    other = make_job(precision="fp8")
    assert choose_deal([other, make_job()], [seat])[1][0].request.precision == "bf16"  # type: ignore[index]
    assert choose_deal([other], [seat]) is None


def test_a_request_that_went_down_with_engines_is_dealt_alone() -> None:
    suspect = make_job()
    suspect.losses = ALONE_AFTER
    queue = [suspect, *(make_job() for _ in range(3))]
    seats = [make_seat("a"), make_seat("b")]
    assert choose_deal(queue, seats)[1] == (suspect,)  # type: ignore[index]
    assert suspect not in choose_deal([*queue[1:], suspect], seats)[1]  # type: ignore[index]


@pytest.mark.parametrize(("begun", "taken"), [(False, True), (True, False)])
def test_an_idle_engine_takes_what_another_has_not_begun(begun: bool, taken: bool) -> None:
    busy, idle = make_seat("busy"), make_seat("idle")
    first, second = Call(jobs=(make_job(),)), Call(jobs=(make_job(),))
    first.jobs[0].begun, second.jobs[0].begun = True, begun
    busy.calls += [first, second]
    assert (find_steal([busy, idle]) == (busy, second)) is taken
    assert find_steal([busy]) is None
    second.stopped = True
    assert find_steal([busy, idle]) is None
    second.stopped, first.jobs[0].ended = False, True
    assert find_steal([busy, idle]) is None, "it is about to begin"


def test_its_memory_forgets_the_loras_that_were_not_used_for_longest() -> None:
    seat = Seat(name="a", runs=RUNS, cache_bytes=2)
    assert [seat.remember(make_job(lora), 1) for lora in ("x", "y", "x", "z", "y")] == [True, True, False, True, True]
    assert list(seat.attached) == ["z", "y"]
