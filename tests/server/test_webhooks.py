"""A webhook hears of its task, can trust the sender, and is tried again when it does not answer."""

import contextlib
import hashlib
import hmac
import http.server
import json
import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lora_runtime.backends.bfl_words import Status
from lora_runtime.catalogue import ENDPOINTS
from lora_runtime.errors import InvalidInput, RemoteFailed, RenderFailed
from lora_runtime.registry.accounts import Accounts
from lora_runtime.server.outbound import Outbound
from lora_runtime.server.tasks import NewTask, Tasks
from lora_runtime.server.webhooks import AT_ONCE, AT_ONE_HOST, RETRY_AFTER_S, Attempt, Deliveries, Delivery
from lora_runtime.server.wire import Flux2KleinInputs
from lora_runtime.storage.database import Database
from lora_runtime.values import RenderRequest
from tests.api_server import Server, run_server
from tests.drawing_backend import DrawingBackend

URL = "/v1/flux-2-klein-pocket"
POCKET_ENDPOINT = ENDPOINTS["flux-2-klein-pocket"]
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


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    with run_server(DrawingBackend(), home) as server:
        yield server


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


NEVER_SENT = [
    ("webhook_url", "RECEIVER", "not a public address"),
    ("webhook_url", "http://localhost:9/", "not a public address"),
    ("webhook_url", "http://2130706433/", "not a public address"),
    ("webhook_url", "http://[::ffff:10.0.0.1]/", "not a public address"),
    ("webhook_url", "https://user:secret@169.254.169.254/x?token=secret", "not a public address"),
    ("webhook_url", "http://xn--/", "no http or https URL"),
    ("webhook_url", "http://xn--zzzzzz.example/", "no http or https URL"),
    ("webhook_url", f"http://{'a' * 64}.example/", "no http or https URL"),
    ("webhook_url", f"http://{'a.' * 130}example/", "no http or https URL"),
    ("webhook_url", "http://a..example/", "no http or https URL"),
    ("webhook_url", "http://\u2100.example/", "no http or https URL"),
    ("webhook_url", "http://a.example:0/", "no http or https URL"),
    ("webhook_url", "http://a.example:65536/", "no http or https URL"),
    ("webhook_url", "http://a.example/\r\nx", "no http or https URL"),
    ("webhook_url", "http://a.example\\@b.example/", "no http or https URL"),
    ("webhook_url", "http://a.example/\ud800", "half a surrogate pair"),
    ("webhook_secret", "gehe\u00efm", "It is sent as a header"),
    ("webhook_secret", "a\r\nx-admin: 1", "It is sent as a header"),
    ("webhook_secret", " a", "It is sent as a header"),
    ("webhook_secret", "a\x7f", "It is sent as a header"),
    ("webhook_secret", "\ud800", "half a surrogate pair"),
    ("webhook_secret", "\0", "holds a NUL"),
]


def test_what_can_never_be_sent_is_refused_at_once(server: Server, receiver: Receiver) -> None:
    for field_name, value, says in NEVER_SENT:
        reply = server.ask("POST", URL, {**BODY, field_name: value.replace("RECEIVER", receiver.url)})
        assert reply.status == 422, value
        (problem,) = reply.json["detail"]
        assert problem["loc"] == ["body", field_name]
        assert says in problem["msg"]
        assert "secret" not in problem["msg"]
    assert server.service.tasks.active("local") == 0


def test_a_name_that_turns_out_private_is_refused_at_submit_and_again_when_it_is_called(
    server: Server, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second answer of the name service counts too: it may have changed in between."""
    port = int(receiver.url.split(":")[2].partition("/")[0])
    answers = ["10.0.0.1", "93.184.215.14", "127.0.0.1"]

    def look_up(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        assert host == "hooks.example"
        return [(2, 1, 6, "", (answers.pop(0) if len(answers) > 1 else answers[0], port))]

    monkeypatch.setattr("lora_runtime.server.outbound.socket.getaddrinfo", look_up)
    body = {**BODY, "webhook_url": f"http://hooks.example:{port}/hook"}
    service, organization = server.service, "local"
    with pytest.raises(InvalidInput, match=r"hooks\.example is at 10\.0\.0\.1"):
        service.submit(organization, POCKET_ENDPOINT, Flux2KleinInputs(**body), base_url="http://127.0.0.1")
    accepted = service.submit(organization, POCKET_ENDPOINT, Flux2KleinInputs(**body), base_url="http://127.0.0.1")
    for _ in range(600):
        delivery = service.deliveries.find(accepted.task_id)
        if delivery is not None and delivery.attempts:
            break
        time.sleep(0.05)
    assert delivery is not None
    assert "hooks.example is at 127.0.0.1, which is not a public address" in (delivery.attempts[0].error or "")
    assert receiver.heard.empty()


def test_a_name_service_that_does_not_answer_holds_no_submit_up(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr("lora_runtime.server.outbound.socket.getaddrinfo", lambda *_a, **_k: never.wait(60) and [])
    monkeypatch.setattr("lora_runtime.server.outbound.LOOK_UP_S", 0.05)
    outbound = Outbound(allow_private=False)
    for _ in range(3):
        outbound.require_reachable("https://hooks.example/x")
    never.set()
    outbound.close()


def test_a_receiver_that_drips_is_cut_off(drip: str) -> None:
    """Each byte comes in time; together they would never end."""
    outbound = Outbound(allow_private=True)
    with pytest.raises(RemoteFailed):
        outbound.post(drip, b"{}", {}, timeout_s=0.5)
    outbound.close()


@pytest.fixture
def drip() -> Iterator[str]:
    """A receiver that answers one byte of a header at a time, as long as anybody listens."""
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
            with contextlib.suppress(OSError):
                while not over.wait(0.05):
                    self.wfile.write(b"x")

        def log_message(self, *_args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        over.set()
        server.shutdown()
        thread.join()


def test_receivers_that_hang_hold_nobody_else_up(
    home: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One organization's receivers hang at more hosts than it may try at once; another one's is told at once."""
    monkeypatch.setattr("lora_runtime.server.webhooks.ANSWER_S", 3600.0)  # however slow the machine of this test is
    monkeypatch.setattr("lora_runtime.server.webhooks._HOLD_S", 7200.0)
    with contextlib.ExitStack() as sockets:
        hanging = [sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=32)) for _ in range(5)]
        with run_server(DrawingBackend(), home, allow_private_networks=True, max_active_tasks=100) as server:
            accounts, urls = server.service.accounts, [f"http://127.0.0.1:{one.getsockname()[1]}/x" for one in hanging]
            keys = {name: accounts.create_key(name)[1] for name in ("slow", "quick")}
            for url in urls * (AT_ONE_HOST + 1):
                server.ask("POST", URL, {**BODY, "webhook_url": url}, key=keys["slow"])
            while len(server.service.webhooks._dispatcher.under_way) < AT_ONCE:
                time.sleep(0.01)
            task_id = server.ask("POST", URL, {**BODY, "webhook_url": receiver.url}, key=keys["quick"]).json["id"]
            assert json.loads(receiver.heard.get(timeout=60)[1])["id"] == task_id
            hung = Counter(
                (each.organization, each.host)
                for each in server.service.webhooks._dispatcher.under_way
                if each.organization == "slow"
            )
            assert sum(hung.values()) == AT_ONCE
            assert max(hung.values()) == AT_ONE_HOST
            for one in hanging:
                one.close()


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


def owed(
    database: Database, clock: Clock, organization: str = "acme", url: str = "http://x/", count: int = 1
) -> Deliveries:
    """A database with tasks that failed, whose webhooks are owed."""
    Accounts(database).add_organization(organization)
    tasks = Tasks(database, max_active=24, clock=clock)
    request = RenderRequest(
        weights="pocket", precision="fp32", prompt="x", seed=1, width=64, height=64, steps=4, guidance=1.0
    )
    new = NewTask(
        organization=organization,
        endpoint="flux-2-klein-pocket",
        request=request,
        millicredits=1,
        output_format="png",
        base_url="http://127.0.0.1",
        webhook_url=url,
    )
    for _ in range(count):
        tasks.submit(new)
        (task,) = tasks.claim()
        tasks.fail(task, Status.ERROR, {"error": "x"})
    return Deliveries(database, clock=clock)


def claim(deliveries: Deliveries) -> Delivery:
    delivery = deliveries.claim()
    assert delivery is not None
    return delivery


def test_attempts_back_off_and_end(database: Database) -> None:
    clock = Clock()
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


def test_each_receiver_has_its_own_share_and_each_organization_too(database: Database) -> None:
    clock = Clock()
    for url in ("http://hangs:80/a", "http://hangs:80?b", "http://hangs:80/a"):
        owed(database, clock, url=url, count=2)
    owed(database, clock, url="http://hangs:8080/other-port")
    owed(database, clock, url="http://hangs:80.example/longer-name")
    deliveries = owed(database, clock, "zenith", url="http://hangs:80/a")
    under_way: list[Delivery] = []
    while (delivery := deliveries.claim(under_way)) is not None:
        under_way.append(delivery)
    assert Counter((each.organization, each.host) for each in under_way) == {
        ("acme", "http://hangs:80"): AT_ONE_HOST,
        ("acme", "http://hangs:8080"): 1,
        ("acme", "http://hangs:80.example"): 1,
        ("zenith", "http://hangs:80"): 1,
    }
    assert deliveries.claim(under_way[1:]) is not None, "one of them has ended"
    many = [replace(under_way[0], host=f"http://{number}") for number in range(AT_ONCE)]
    assert deliveries.claim(many) is None, "all are acme's"


def test_the_next_try_is_waited_for_and_not_looked_for(database: Database) -> None:
    clock = Clock()
    deliveries = owed(database, clock)
    assert deliveries.wait_s(9.0) == 9.0, "what is due now is claimed, not waited for"
    deliveries.record(claim(deliveries), Attempt(at=clock.now, status=503))
    assert deliveries.wait_s(9.0) == RETRY_AFTER_S[0]
    assert deliveries.wait_s(0.5) == 0.5
    clock.now += 0.75
    assert deliveries.wait_s(9.0) == 0.25


def test_a_delivery_whose_process_died_is_taken_again(database: Database) -> None:
    clock = Clock()
    deliveries = owed(database, clock)
    first = claim(deliveries)
    assert deliveries.claim() is None
    clock.now += 60
    assert claim(deliveries).task_id == first.task_id
