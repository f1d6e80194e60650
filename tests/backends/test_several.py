"""Sweeps over several backends: rows of this machine and rows of a server in one grid."""

import csv
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.grid import SweepSpec, make_spec, plan
from evaluation.report.columns import make_table
from evaluation.report.files import write_cell, write_table
from evaluation.store.store import Store
from evaluation.sweep import CellEnded, Finished, Planned, SweepEvent, resume_sweep, run_sweep
from lora_runtime.backends.base import Backend
from lora_runtime.backends.open import parse_backends, parse_finetunes
from lora_runtime.backends.remote import Pace, RemoteBackend
from lora_runtime.backends.several import Share, render_shares
from lora_runtime.errors import Conflict, InvalidInput, NotFound, RenderFailed, Unavailable
from lora_runtime.png import read_metadata
from lora_runtime.requests import find_status, make_request
from lora_runtime.settings import settings
from lora_runtime.values import Failed, Rendered, RenderRequest
from tests.bfl_doubles import KEY, BflDouble, Reply
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend

QUICK = Pace(first_poll_s=0.005, longest_poll_s=0.02, first_retry_s=0.005, longest_retry_s=0.02, tries=3)


@pytest.fixture
def server() -> Iterator[BflDouble]:
    with BflDouble() as double:
        yield double


@pytest.fixture
def backends(server: BflDouble) -> Iterator[dict[str, Backend]]:
    known = {STYLE.sha256: "my-style", SUBJECT.sha256: "my-subject"}
    with closing(RemoteBackend(server.origin, KEY, finetunes=known, pace=QUICK)) as remote:
        yield {"drawing": DrawingBackend(), "remote": remote}


def spec(backends: Mapping[str, Backend], **changes: Any) -> SweepSpec:
    asked = {"loras": [STYLE], "prompts": ["a red fox"], "strengths": "0-1 [3]", "seeds": [7], **changes}
    return make_spec(backends, width=64, height=64, **asked)


def statuses(events: list[SweepEvent]) -> list[str]:
    return [event.status for event in events if isinstance(event, CellEnded)]


def run(asked: SweepSpec, backends: Mapping[str, Backend], store: Store) -> tuple[list[SweepEvent], str]:
    events = list(run_sweep(asked, backend=backends, store=store))
    assert isinstance(events[0], Planned)
    return events, events[0].run_id


def test_each_backend_makes_a_row_of_its_own_cells(backends: dict[str, Backend]) -> None:
    cells = plan(spec(backends))
    assert [(cell.row, cell.target.backend, cell.request.precision) for cell in cells] == [
        *[(0, "drawing", "fp32")] * 3,
        *[(1, "remote", "bf16")] * 3,
    ]
    assert len({cell.identity for cell in cells}) == 6
    assert {cell.request.seed for cell in cells} == {7}
    assert [cell.base for cell in cells] == [cells[0].identity] * 3 + [cells[3].identity] * 3
    assert "remote" in cells[3].row_label


def test_local_and_remote_rows_in_one_grid(
    server: BflDouble, backends: dict[str, Backend], store: Store, tmp_path: Path
) -> None:
    events, run_id = run(spec(backends), backends, store)
    assert statuses(events) == ["done"] * 6
    here, there = store.cells(run_id)[:3], store.cells(run_id)[3:]
    assert all(record.scores for record in (*here, *there))
    assert [record.cost for record in (*here, *there)] == [None] * 3 + [4.5] * 3
    assert {record.request_id for record in there} == set(server.bodies)
    assert {record.provenance["origin"] for record in there} == {server.origin}

    for record in (*here, *there):
        for path in (record.image, write_cell(tmp_path, store.run(run_id).spec, record)):
            assert path is not None
            chunk = read_metadata(path)
            assert chunk is not None
            assert chunk.get("server") == (server.origin if record in there else None)

    table = make_table(store.cells(run_id))
    assert list(table["backend"]) == ["drawing"] * 3 + ["remote"] * 3
    assert list(table["cost"])[3:] == [4.5] * 3
    rows = list(csv.DictReader(write_table(table, ".csv").decode("utf-8-sig").splitlines()))
    assert [row["cost"] for row in rows] == [""] * 3 + ["4.5"] * 3
    assert {row["request_id"] for row in rows[3:]} == set(server.bodies)

    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.verdict.ok
    assert "On remote, strength 0 is what the server sent for it; no base image was asked for." in (
        finished.verdict.findings
    )


def test_a_remote_strength_0_is_really_asked_for(server: BflDouble, backends: dict[str, Backend], store: Store) -> None:
    drawing = backends["drawing"]
    assert isinstance(drawing, DrawingBackend)
    run(spec(backends), backends, store)
    asked = [(body.get("finetune_id"), body.get("finetune_strength")) for body in server.bodies.values()]
    assert sorted(asked) == [("my-style", 0), ("my-style", 0.5), ("my-style", 1)]
    assert {call.path for call in server.of("submit")} == {"/v1/flux-2-klein-pocket-finetuned"}
    # Here, strength 0 is the base image and the control.
    assert sorted((request.lora is None, request.strength) for request in drawing.rendered) == [
        (False, 0), (False, Decimal("0.5")), (False, 1), (True, 0),
    ]  # fmt: skip


def test_each_lora_has_its_own_remote_strength_0(server: BflDouble, backends: dict[str, Backend], store: Store) -> None:
    remote = {"remote": backends["remote"]}
    events, _ = run(spec(remote, loras=[STYLE, SUBJECT], strengths="0, 1"), remote, store)
    assert statuses(events) == ["done"] * 4
    assert sorted((body["finetune_id"], body["finetune_strength"]) for body in server.bodies.values()) == [
        ("my-style", 0), ("my-style", 1), ("my-subject", 0), ("my-subject", 1),
    ]  # fmt: skip


def test_stopped_and_resumed_nothing_kept_is_paid_twice(
    server: BflDouble, backends: dict[str, Backend], store: Store
) -> None:
    cancel = threading.Event()
    server.hold_from = 3
    events = []
    for event in run_sweep(spec(backends, strengths="0-1 [9]"), backend=backends, store=store, cancel=cancel):
        events.append(event)
        if isinstance(event, CellEnded) and event.record.cell.target.backend == "remote":
            cancel.set()
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.stopped
    kept = {record.cell.identity for record in store.cells(finished.run_id) if record.state == "done"}
    assert 0 < len(kept) < 18
    server.hold_from, server.active = None, set()
    before = server.count("submit")
    resumed = list(resume_sweep(finished.run_id, backend=backends, store=store))
    assert statuses(resumed).count("kept") == len(kept)
    remote_left = sum(
        record.cell.target.backend == "remote" and record.cell.identity not in kept
        for record in store.cells(finished.run_id)
    )
    assert server.count("submit") - before == remote_left
    assert store.run(finished.run_id).status == "done"


def test_a_server_that_fails_leaves_this_machine_s_row_whole(
    server: BflDouble, backends: dict[str, Backend], store: Store
) -> None:
    server.always("submit", Reply(status=402, body={"detail": "Insufficient credits"}))
    events, run_id = run(spec(backends), backends, store)
    assert sorted(statuses(events)) == ["done"] * 3 + ["failed"] * 3
    assert "Insufficient credits" in str(store.cells(run_id)[3].error)
    del server._always["submit"]
    again = list(resume_sweep(run_id, backend=backends, store=store))
    assert sorted(statuses(again)) == ["done"] * 3 + ["kept"] * 3


def test_closing_early_stops_every_backend(server: BflDouble, backends: dict[str, Backend], store: Store) -> None:
    server.hold = True
    events = run_sweep(spec(backends), backend=backends, store=store)
    while not isinstance(next(events), CellEnded):
        pass
    events.close()
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("-share")]
    assert any(record.state == "done" for record in store.cells(store.runs(1)[0].id))


def test_a_fault_of_a_backend_as_a_whole_is_raised(server: BflDouble, backends: dict[str, Backend]) -> None:
    server.hold = True
    request = make_request(find_status(backends["remote"]), prompt="a fox", lora=STYLE, seed=1, width=64, height=64)
    with closing(RemoteBackend(server.origin, KEY)) as closed:
        pass
    shares = [
        Share(backend=backends["remote"], requests=(request,) * 3, indices=(0, 2, 4)),
        Share(backend=closed, requests=(request,) * 2, indices=(1, 3)),
    ]
    with pytest.raises(Unavailable, match="closed"):
        list(render_shares(shares))


def test_events_keep_their_places(server: BflDouble, backends: dict[str, Backend]) -> None:
    def request(name: str, seed: int) -> RenderRequest:
        return make_request(find_status(backends[name]), prompt="a fox", lora=STYLE, seed=seed, width=64, height=64)

    drawing = backends["drawing"]
    assert isinstance(drawing, DrawingBackend)
    drawing.fails = lambda request: RenderFailed("It broke.") if request.seed == 3 else None
    shares = [
        Share(backend=drawing, requests=(request("drawing", 1), request("drawing", 3)), indices=(1, 3)),
        Share(backend=backends["remote"], requests=(request("remote", 0), request("remote", 2)), indices=(0, 2)),
    ]
    ended = {event.index: event for event in render_shares(shares) if isinstance(event, Rendered | Failed)}
    assert sorted(ended) == [0, 1, 2, 3]
    assert [type(ended[index]) for index in range(4)] == [Rendered, Rendered, Rendered, Failed]
    found = {index: event.provenance["backend"] for index, event in ended.items() if isinstance(event, Rendered)}
    assert found == {0: "remote", 1: "drawing", 2: "remote"}


def test_a_run_wants_all_its_backends_and_the_same_server(
    server: BflDouble, backends: dict[str, Backend], store: Store
) -> None:
    server.always("submit", Reply(status=422, body={"detail": "no"}))
    _, run_id = run(spec(backends), backends, store)
    with pytest.raises(Conflict, match="renders on the remote backend, not on drawing"):
        list(resume_sweep(run_id, backend=backends["drawing"], store=store))
    with BflDouble() as other, closing(RemoteBackend(other.origin, KEY)) as elsewhere:
        with pytest.raises(Conflict, match="Set KLEIN_LAB_REMOTE"):
            list(resume_sweep(run_id, backend={**backends, "remote": elsewhere}, store=store))
        assert not other.calls


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loras": [STYLE, SUBJECT]}, "several LoRAs and several backends"),
        ({"loras": ["finetune:their-org/style"]}, "is not on this machine, so the drawing backend"),
        ({"loras": ["finetune:no good"]}, "not a finetune id"),
    ],
)
def test_what_cannot_stand_in_one_grid(backends: dict[str, Backend], change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        spec(backends, **change)
    with pytest.raises(InvalidInput, match="at least one"):
        spec({})


def test_a_finetune_that_only_the_server_has(server: BflDouble, backends: dict[str, Backend], store: Store) -> None:
    remote = {"remote": backends["remote"]}
    asked = spec(remote, loras=["finetune:their-org/style"], weights="klein-9b-kv", precision=["fp8", "bf16"])
    events, run_id = run(asked, remote, store)
    assert statuses(events) == ["done"] * 6
    assert {body["finetune_id"] for body in server.bodies.values()} == {"their-org/style"}
    assert {call.path for call in server.of("submit")} == {
        "/v1/flux-2-klein-9b-kv-finetuned",
        "/v1/flux-2-klein-9b-kv-bf16-finetuned",
    }
    assert store.run(run_id).spec == asked
    assert statuses(list(resume_sweep(run_id, backend=remote, store=store))) == ["kept"] * 6


# The command line

SWEEP = ["sweep", "--prompt", "a red fox", "--width", "64", "--height", "64", "--seed", "7", "--json"]


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> DrawingBackend:
    """A drawing backend in place of this machine's, and a quick remote one."""
    drawing = DrawingBackend()

    class Quick(RemoteBackend):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs, pace=QUICK)

    monkeypatch.setattr("lora_runtime.backends.local.LocalBackend", lambda: drawing)
    monkeypatch.setattr("lora_runtime.backends.remote.RemoteBackend", Quick)
    monkeypatch.setenv("BFL_API_KEY", KEY)
    settings.cache_clear()
    return drawing


def call(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    result = CliRunner().invoke(app, [*arguments])
    cells = [cell for line in result.stdout.splitlines() if "answer" not in (cell := json.loads(line))]
    return result.exit_code, cells, result.stderr


def test_sweep_on_both_backends(server: BflDouble, drawing: DrawingBackend, tmp_path: Path) -> None:
    lora = ["--lora", "style", "--finetune", "style=my-style", "--remote", server.origin]
    code, cells, said = call(*SWEEP, *lora, "--strengths", "0, 1", "--backend", "local,remote", "--out", str(tmp_path))
    assert code == 0, said
    assert sorted((cell["backend"], cell["strength"], cell["cost"]) for cell in cells) == [
        ("drawing", 0, None), ("drawing", 1, None), ("remote", 0, 4.5), ("remote", 1, 4.5),
    ]  # fmt: skip
    assert {cell["request_id"] for cell in cells} == {None, *server.bodies}
    assert len(list(tmp_path.glob("*strength*.png"))) == 4
    assert KEY not in said
    code, cells, said = call("resume", cells[0]["run"], "--remote", server.origin, "--json")
    assert (code, {cell["status"] for cell in cells}) == (0, {"kept"})


def test_the_server_can_come_from_the_environment(
    server: BflDouble, drawing: DrawingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLEIN_LAB_REMOTE", server.origin)
    settings.cache_clear()
    code, cells, said = call(*SWEEP, "--lora", "finetune:my-style", "--strengths", "1", "--backend", "remote")
    assert code == 0, said
    assert [cell["lora"] for cell in cells] == ["my-style"] * 2
    assert not drawing.rendered


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lora", "style", "--backend", "cloud"], "'cloud' is none of local, remote"),
        (["--lora", "style", "--backend", ","], "Backend:"),
        (["--lora", "style", "--backend", "remote", "--remote", "mars"], "neither a region"),
        (["--lora", "style", "--backend", "remote"], "does not have the pocket klein"),
        (["--lora", "style", "--backend", "remote", "--finetune", "style"], "is not LORA=ID"),
        (["--lora", "finetune:x"], "is not on this machine"),
    ],
)
def test_an_error_is_one_sentence(drawing: DrawingBackend, arguments: list[str], said: str) -> None:
    code, cells, error = call(*SWEEP, *arguments)
    assert (code, cells) == (1, [])
    assert said in error
    assert error.count("\n") == 1


def test_names_and_pairs_are_read() -> None:
    assert parse_backends(" Remote, local,remote") == ("remote", "local")
    (pair,) = parse_finetunes(["style=their-org/style"]).items()
    assert pair[1] == "their-org/style"
    with pytest.raises(NotFound):
        parse_finetunes(["no-such-lora=x"])
