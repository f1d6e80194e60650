"""A webhook hears of its task, can trust the sender, and is tried again when it does not answer."""

import hashlib
import hmac
import http.server
import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lora_runtime.accounts import Accounts
from lora_runtime.database import Database
from lora_runtime.deliveries import RETRY_AFTER_S, Attempt, Deliveries, Delivery
from lora_runtime.errors import RenderFailed
from lora_runtime.tasks import NewTask, Status, Tasks
from lora_runtime.values import RenderRequest
from tests.api_server import Server, run_server
from tests.drawing_backend import DrawingBackend

URL = "/v1/flux-2-klein-pocket"
BODY = {"prompt": "a cat", "seed": 3, "width": 64, "height": 64}


@dataclass
class Receiver:
    """A webhook: what it heard, and what it answers."""

    url: str
    heard: queue.Queue[tuple[dict[str, str], bytes]] = field(default_factory=queue.Queue)
    answers: list[int] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.heard.put(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}/hook")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


def wait_for_state(server: Server, task_id: str, state: str) -> dict[str, Any]:
    for _ in range(600):
        reply = server.ask("GET", f"/v1/lab/webhook?id={task_id}")
        if reply.status == 200 and reply.json["state"] == state:
            told: dict[str, Any] = reply.json
            return told
        time.sleep(0.05)
    raise AssertionError(reply.body)


def test_a_result_is_told_and_signed_both_ways(home: Path, receiver: Receiver) -> None:
    with run_server(DrawingBackend(), home, allow_private_networks=True) as server:
        reply = server.ask("POST", URL, {**BODY, "webhook_url": receiver.url, "webhook_secret": "s3cret"})
        assert reply.json.keys() == {"id", "status", "webhook_url", "cost", "input_mp", "output_mp"}
        assert (reply.json["status"], reply.json["webhook_url"]) == ("Pending", receiver.url)
        headers, raw = receiver.heard.get(timeout=60)
        body = json.loads(raw)
        assert headers["x-webhook-secret"] == "s3cret"
        assert headers["x-bfl-signature"] == "sha256=" + hmac.new(b"s3cret", raw, hashlib.sha256).hexdigest()
        assert headers["content-type"] == "application/json"
        polled = server.ask("GET", f"/v1/get_result?id={reply.json['id']}").json
        assert {key: body[key] for key in polled} == polled
        assert body["timestamp"]
        assert server.ask("GET", body["result"]["sample"]).headers["content-type"] == "image/jpeg"
        told = wait_for_state(server, reply.json["id"], "delivered")
        assert [attempt["status"] for attempt in told["attempts"]] == [204]


def test_a_failure_is_told_with_its_reason(home: Path, receiver: Receiver) -> None:
    backend = DrawingBackend(fails=lambda _request: RenderFailed("It left the range."))
    with run_server(backend, home, allow_private_networks=True) as server:
        server.ask("POST", URL, {**BODY, "webhook_url": receiver.url})
        headers, raw = receiver.heard.get(timeout=60)
    body = json.loads(raw)
    assert (body["status"], body["result"], body["error"], body["message"]) == (
        "Error", None, "Error", "It left the range.",
    )  # fmt: skip
    assert not {"x-webhook-secret", "x-bfl-signature"} & headers.keys()


def test_a_receiver_that_fails_is_tried_again(home: Path, receiver: Receiver) -> None:
    receiver.answers += [500]
    with run_server(DrawingBackend(), home, allow_private_networks=True) as server:
        task_id = server.ask("POST", URL, {**BODY, "webhook_url": receiver.url}).json["id"]
        told = wait_for_state(server, task_id, "delivered")
    assert [attempt["status"] for attempt in told["attempts"]] == [500, 204]


def test_private_networks_hear_nothing_unless_allowed(home: Path, receiver: Receiver) -> None:
    with run_server(DrawingBackend(), home) as server:
        accepted = server.ask("POST", URL, {**BODY, "webhook_url": receiver.url}).json
        assert server.wait(f"/v1/get_result?id={accepted['id']}")["status"] == "Ready"
        for _ in range(600):
            told = server.ask("GET", f"/v1/lab/webhook?id={accepted['id']}").json
            if told["attempts"]:
                break
            time.sleep(0.05)
        assert "not a public address" in told["attempts"][0]["error"]
    assert receiver.heard.empty()


def test_only_the_caller_learns_of_a_webhook(home: Path, receiver: Receiver) -> None:
    with run_server(DrawingBackend(), home, allow_private_networks=True) as server:
        accounts = server.service.accounts
        keys = [accounts.create_key(name)[1] for name in ("acme", "zenith")]
        task_id = server.ask("POST", URL, {**BODY, "webhook_url": receiver.url}, key=keys[0]).json["id"]
        receiver.heard.get(timeout=60)
        assert server.ask("GET", f"/v1/lab/webhook?id={task_id}", key=keys[0]).status == 200
        assert server.ask("GET", f"/v1/lab/webhook?id={task_id}", key=keys[1]).status == 404
        assert server.ask("GET", f"/v1/lab/webhook?id={task_id}").status == 403


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def owed(database: Database, clock: Clock) -> Deliveries:
    """A database with one task that failed, whose webhook is owed."""
    Accounts(database).add_organization("acme")
    tasks = Tasks(database, max_active=24, clock=clock)
    request = RenderRequest(
        weights="pocket", precision="fp32", prompt="x", seed=1, width=64, height=64, steps=4, guidance=1.0
    )
    tasks.submit(
        NewTask(
            organization="acme",
            endpoint="flux-2-klein-pocket",
            request=request,
            millicredits=1,
            output_format="png",
            base_url="http://127.0.0.1",
            webhook_url="http://x/",
        )
    )
    task = tasks.claim()
    assert task is not None
    tasks.fail(task, Status.ERROR, {"error": "x"})
    return Deliveries(database, clock=clock)


def claim(deliveries: Deliveries) -> Delivery:
    delivery = deliveries.claim()
    assert delivery is not None
    return delivery


def test_attempts_back_off_and_end(tmp_path: Path) -> None:
    clock = Clock()
    database = Database(f"sqlite:///{tmp_path / 'lab.sqlite3'}")
    deliveries = owed(database, clock)
    for pause in RETRY_AFTER_S:
        delivery = deliveries.record(claim(deliveries), Attempt(at=clock.now, status=503))
        assert delivery.state == "pending"
        clock.now += pause - 0.5
        assert deliveries.claim() is None
        clock.now += 0.5
    dropped = deliveries.record(claim(deliveries), Attempt(at=clock.now, error="no route"))
    assert (dropped.state, len(dropped.attempts)) == ("dropped", 4)
    clock.now += 10_000
    assert deliveries.claim() is None
    assert deliveries.find(dropped.task_id) == dropped
    database.close()


def test_a_delivery_whose_process_died_is_taken_again(tmp_path: Path) -> None:
    clock = Clock()
    database = Database(f"sqlite:///{tmp_path / 'lab.sqlite3'}")
    deliveries = owed(database, clock)
    first = claim(deliveries)
    assert deliveries.claim() is None
    clock.now += 60
    assert claim(deliveries).task_id == first.task_id
    database.close()
