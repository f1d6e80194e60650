"""The remote backend against a server that behaves, and against one that misbehaves on purpose."""

import base64
import hashlib
import io
import logging
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from bfl_doubles import CUT, KEY, SILENT, BflDouble, Reply, draw, polled
from PIL import Image

from lora_runtime.backends import remote_http
from lora_runtime.backends.bfl import read_retry_after
from lora_runtime.backends.remote import Pace, RemoteBackend
from lora_runtime.errors import (
    Cancelled,
    InvalidInput,
    KleinLabError,
    Moderated,
    NotAuthorized,
    NotFound,
    OutOfCredits,
    RemoteFailed,
    TooManyTasks,
    Unavailable,
)
from lora_runtime.lora.library import find_finetune
from lora_runtime.values import Failed, LoraRef, Progress, Reference, Rendered, RenderEvent, RenderRequest

QUICK = Pace(first_poll_s=0.005, longest_poll_s=0.02, first_retry_s=0.005, longest_retry_s=0.02, tries=3, timeout_s=60)
IMPATIENT = replace(QUICK, timeout_s=1.0)

REQUEST = RenderRequest(
    weights="klein-9b",
    precision="fp8",
    prompt="a red fox",
    seed=7,
    width=64,
    height=80,
    steps=4,
    guidance=1.0,
    lora=find_finetune("their-org/fox-style"),
    strength=Decimal("0.70"),
)


@pytest.fixture
def server() -> Iterator[BflDouble]:
    with BflDouble() as double:
        yield double


@pytest.fixture
def remote(server: BflDouble) -> Iterator[RemoteBackend]:
    with closing(RemoteBackend(server.origin, KEY, pace=QUICK)) as backend:
        yield backend


def ends(events: Iterator[RenderEvent]) -> list[Rendered | Failed]:
    ended = [event for event in events if not isinstance(event, Progress)]
    return sorted(ended, key=lambda event: event.index)


def image(backend: RemoteBackend, request: RenderRequest = REQUEST) -> Rendered:
    (event,) = ends(backend.render([request]))
    assert isinstance(event, Rendered), event
    return event


def error(backend: RemoteBackend, request: RenderRequest = REQUEST) -> KleinLabError:
    (event,) = ends(backend.render([request]))
    assert isinstance(event, Failed)
    return event.error


def impatient(server: BflDouble) -> RemoteBackend:
    return RemoteBackend(server.origin, KEY, pace=IMPATIENT)


# What is sent and what comes back


def test_one_request_on_the_wire(server: BflDouble, remote: RemoteBackend) -> None:
    rendered = image(remote)
    submit, *polls = server.of("submit") + server.of("poll")
    (sample,) = server.of("sample")
    asked = {
        "prompt": "a red fox",
        "seed": 7,
        "width": 64,
        "height": 80,
        "output_format": "png",
        "finetune_id": "their-org/fox-style",
        "finetune_strength": 0.7,
    }
    assert submit.path == "/v1/flux-2-klein-9b-finetuned"
    assert submit.json == asked
    assert submit.headers["content-type"] == "application/json"
    (task,) = server.bodies
    assert [call.path for call in polls] == [f"/v1/get_result?id={task}"] * 3
    assert {call.headers["x-key"] for call in (submit, *polls)} == {KEY}
    assert "x-key" not in sample.headers
    assert server.origin + sample.path == server.ready(task)["result"]["sample"]
    with Image.open(io.BytesIO(draw(asked))) as drawn:
        assert rendered.image.tobytes() == drawn.tobytes()


def test_cost_and_request_id_are_kept_with_the_image(server: BflDouble, remote: RemoteBackend) -> None:
    rendered = image(remote)
    assert rendered.provenance == {
        "backend": "remote",
        "origin": server.origin,
        "endpoint": "flux-2-klein-9b-finetuned",
        "precision": "fp8",
        "finetune_id": "their-org/fox-style",
        "request_id": next(iter(server.bodies)),
        "cost": "4.5",
        "input_mp": "0",
        "output_mp": "1.98",
    }
    assert (rendered.timing.seconds, rendered.timing.batch_size) == (0.001, 1)
    assert rendered.timing.waited_seconds > 0


def test_what_the_server_leaves_out_is_left_out(server: BflDouble, remote: RemoteBackend) -> None:
    task = "1d1c"
    server.bodies[task] = {"prompt": "a red fox", "seed": 7, "width": 64, "height": 80}
    server.script("submit", Reply(body={"id": task, "polling_url": f"{server.origin}/v1/get_result?id={task}"}))
    ready = server.ready(task)
    ready["result"] = {"sample": ready["result"]["sample"]}
    server.script("poll", Reply(body={key: ready[key] for key in ("id", "status", "result")}))
    rendered = image(remote)
    assert "cost" not in rendered.provenance
    assert rendered.timing.seconds > 0


def test_a_later_cost_and_another_prompt_are_told(server: BflDouble, remote: RemoteBackend) -> None:
    def settle(task: str) -> Reply:
        return Reply(body={**server.ready(task, prompt="A red fox, stretching."), "cost": 1.4})

    with Scripted(server, settle):
        rendered = image(remote)
    assert (rendered.provenance["cost"], rendered.provenance["prompt_used"]) == ("1.4", "A red fox, stretching.")


def test_strength_0_is_really_asked_for(server: BflDouble, remote: RemoteBackend) -> None:
    image(remote, replace(REQUEST, strength=Decimal(0)))
    (call,) = server.of("submit")
    assert call.path == "/v1/flux-2-klein-9b-finetuned"
    assert (call.json["finetune_id"], call.json["finetune_strength"]) == ("their-org/fox-style", 0)


def test_without_a_lora_the_plain_endpoint_is_asked(server: BflDouble, remote: RemoteBackend) -> None:
    rendered = image(remote, replace(REQUEST, lora=None, strength=Decimal(0)))
    (call,) = server.of("submit")
    assert call.path == "/v1/flux-2-klein-9b"
    assert not {"finetune_id", "finetune_strength"} & call.json.keys()
    assert rendered.provenance["precision"] == "the server's own"
    assert "finetune_id" not in rendered.provenance


@pytest.mark.parametrize(
    ("precision", "path"),
    [("fp8", "/v1/flux-2-klein-9b-kv-finetuned"), ("bf16", "/v1/flux-2-klein-9b-kv-bf16-finetuned")],
)
def test_the_precision_chooses_the_endpoint(
    server: BflDouble, remote: RemoteBackend, precision: Any, path: str
) -> None:
    image(remote, replace(REQUEST, weights="klein-9b-kv", precision=precision))
    assert server.of("submit")[0].path == path


def test_reference_images_are_sent_byte_for_byte(server: BflDouble, remote: RemoteBackend, tmp_path: Path) -> None:
    files = []
    for number in range(4):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (64, 64), (number, 0, 0)).save(files[-1])
    references = tuple(Reference(sha256=hashlib.sha256(f.read_bytes()).hexdigest(), path=f) for f in files)
    image(remote, replace(REQUEST, references=references))
    body = server.of("submit")[0].json
    keys = ["input_image", "input_image_2", "input_image_3", "input_image_4"]
    assert [base64.b64decode(body[key]) for key in keys] == [file.read_bytes() for file in files]
    files[1].unlink()
    gone = error(remote, replace(REQUEST, references=references))
    assert isinstance(gone, NotFound)
    assert "Reference image 2" in str(gone)


def test_a_known_file_goes_by_its_id_there(server: BflDouble) -> None:
    lora = LoraRef(name="style", path=Path("style.safetensors"), sha256="a" * 64)
    with closing(RemoteBackend(server.origin, KEY, finetunes={"a" * 64: "my-style"}, pace=QUICK)) as remote:
        image(remote, replace(REQUEST, lora=lora))
        unknown = error(remote, replace(REQUEST, lora=replace(lora, sha256="b" * 64)))
    assert [call.json["finetune_id"] for call in server.of("submit")] == ["my-style"]
    assert isinstance(unknown, NotFound)
    assert "--finetune style=ID" in str(unknown)


def test_a_server_of_this_lab_recognises_a_file(server: BflDouble, remote: RemoteBackend) -> None:
    lora = LoraRef(name="style", path=Path("style.safetensors"), sha256="a" * 64)
    for base in ("4b", "9b"):
        details = {"sha256": "a" * 64, "endpoint": f"flux-2-klein-{base}-finetuned"}
        server.finetunes[f"their-org/style-{base}"] = details
    requests = [replace(REQUEST, lora=lora, seed=seed) for seed in range(8)]
    assert {type(event) for event in ends(remote.render(requests))} == {Rendered}
    assert {call.json["finetune_id"] for call in server.of("submit")} == {"their-org/style-9b"}
    assert server.count("account") == 3  # one list, two details, for all eight
    assert {call.headers["x-key"] for call in server.of("account")} == {KEY}
    missing = error(remote, replace(requests[0], weights="klein-base-9b"))
    assert "not known to have the LoRA style for flux-2-klein-base-9b-finetuned" in str(missing)


def test_bfl_does_not_say_what_a_finetune_holds(server: BflDouble, remote: RemoteBackend) -> None:
    server.finetunes = {f"fox-{n}": {"finetune_comment": "fox"} for n in range(20)}
    lora = LoraRef(name="style", path=Path("style.safetensors"), sha256="a" * 64)
    assert isinstance(error(remote, replace(REQUEST, lora=lora)), NotFound)
    assert server.count("account") == 2
    server.always("account", Reply(status=500, body=b"oops"))
    assert isinstance(error(remote, replace(REQUEST, lora=lora)), RemoteFailed)
    assert server.count("submit") == 0


def test_progress_is_told_in_steps(remote: RemoteBackend) -> None:
    *progress, last = remote.render([REQUEST])
    assert progress == [Progress(indices=(0,), step=0, steps=4), Progress(indices=(0,), step=2, steps=4)]
    assert isinstance(last, Rendered)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strength": Decimal("2.1")}, "not from 0 to 2"),
        ({"strength": Decimal("-0.1")}, "not from 0 to 2"),
        ({"steps": 8}, "in 4 steps"),
        ({"references": (Reference(sha256="", path=Path("a")),) * 5}, "at most 4"),
    ],
)
def test_what_the_api_cannot_render_is_not_sent(
    server: BflDouble, remote: RemoteBackend, change: dict[str, Any], said: str
) -> None:
    refused = error(remote, replace(REQUEST, **change))
    assert isinstance(refused, InvalidInput)
    assert said in str(refused)
    assert not server.calls


def test_up_to_the_limit_are_under_way_at_once(server: BflDouble, remote: RemoteBackend) -> None:
    requests = [replace(REQUEST, seed=seed) for seed in range(60)]
    events = ends(remote.render(requests))
    assert [type(event) for event in events] == [Rendered] * 60
    assert 2 < server.peak <= 24
    assert server.count("submit") == 60  # none was sent in vain
    for request, event in zip(requests, events, strict=True):
        assert isinstance(event, Rendered)
        assert event.image.tobytes() == image(remote, request).image.tobytes()
        if request.seed == 3:
            break


def test_callers_share_the_slots(server: BflDouble) -> None:
    server.limit = 3
    results: list[list[Rendered | Failed]] = []
    with closing(RemoteBackend(server.origin, KEY, max_active=3, pace=QUICK)) as remote:

        def call(caller: int) -> None:
            results.append(ends(remote.render([replace(REQUEST, seed=10 * caller + n) for n in range(5)])))

        threads = [threading.Thread(target=call, args=(caller,)) for caller in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {type(event) for result in results for event in result} == {Rendered}
    assert (server.peak, server.count("submit")) == (3, 20)


# How a task can end


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ({"status": "Error", "details": {"error": "CUDA error"}}, RemoteFailed, "failed there: CUDA error"),
        ({"status": "Error", "error": "internal", "message": "Try later"}, RemoteFailed, "internal; Try later"),
        ({"status": "Failed", "details": None}, RemoteFailed, "failed there"),
        ({"status": "Task not found"}, RemoteFailed, "not known there"),
        (
            {"status": "Request Moderated", "details": {"Moderation Reasons": ["Derivative Works Filter"]}},
            Moderated,
            "before it was rendered: Derivative Works Filter. Change the prompt",
        ),
        (
            {"status": "Content Moderated", "details": {"Moderation Reasons": ["NSFW", "Violence"]}},
            Moderated,
            "after it was rendered: NSFW, Violence. Change the prompt or the seed",
        ),
        ({"status": "Content Moderated", "details": None}, Moderated, "no reason was given"),
    ],
)
def test_each_end_without_an_image_is_its_own_error(
    server: BflDouble, remote: RemoteBackend, body: dict[str, Any], kind: type[KleinLabError], said: str
) -> None:
    server.script("poll", Reply(body={**polled("7", ""), **body}))
    ended = error(remote)
    assert type(ended) is kind
    assert said in str(ended)
    assert server.count("poll") == 1


def test_the_reasons_of_a_moderation_can_be_read(server: BflDouble, remote: RemoteBackend) -> None:
    body = polled("7", "Request Moderated", details={"Moderation Reasons": ["Derivative Works Filter"]})
    server.script("poll", Reply(body=body))
    moderated = error(remote)
    assert isinstance(moderated, Moderated)
    assert (moderated.stage, moderated.reasons) == ("request", ("Derivative Works Filter",))


@pytest.mark.parametrize("status", ["Pending", "Reasoning", "Generating", "Some later word"])
def test_every_other_status_means_wait(server: BflDouble, remote: RemoteBackend, status: str) -> None:
    server.script("poll", *[Reply(body=polled("7", status))] * 4)
    assert image(remote)


@pytest.mark.parametrize("http_status", [202, 404, 422])
def test_a_status_counts_whatever_the_http_status(server: BflDouble, remote: RemoteBackend, http_status: int) -> None:
    server.script("poll", Reply(status=http_status, body=polled("7", "Pending")))
    assert image(remote)


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (402, {"detail": "Insufficient credits"}, OutOfCredits, "Insufficient credits. Add credits"),
        (403, {"detail": "Not authenticated"}, NotAuthorized, "Not authenticated. Check the API key"),
        (401, {"detail": "Not authenticated"}, NotAuthorized, "Check the API key"),
        (404, {"detail": "Not Found"}, NotFound, "says 404: Not Found"),
        (400, {"error": "bad_request", "message": "Bad", "details": {}}, InvalidInput, "bad_request; Bad"),
        (422, {"detail": "fox is for klein-4b."}, InvalidInput, "(422): fox is for klein-4b."),
        (
            422,
            {
                "detail": [
                    {"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"},
                    {"loc": ["body", "seed"], "msg": "Input should be an integer", "type": "int_type"},
                ]
            },
            InvalidInput,
            "prompt: Field required; seed: Input should be an integer.",
        ),
        (500, b"<html>oops</html>", RemoteFailed, "The task may exist and be billed: it was not sent again"),
        (502, b"", RemoteFailed, "says 502: nothing. The task may exist"),
        (302, b"", RemoteFailed, "redirect (302), which is not followed"),
        (200, {"id": "7", "status": "Pending", "webhook_url": "x"}, RemoteFailed, "no id and polling_url"),
        (200, b"not json", RemoteFailed, "no id and polling_url: not json"),
    ],
)
def test_a_refused_request_is_sent_once(
    server: BflDouble, remote: RemoteBackend, status: int, body: Any, kind: type[KleinLabError], said: str
) -> None:
    server.always("submit", Reply(status=status, body=body, headers={"location": "https://elsewhere.example/"}))
    refused = error(remote)
    assert isinstance(refused, kind)
    assert said in str(refused)
    assert server.count("submit") == len(server.calls) == 1


@pytest.mark.parametrize(("status", "kind"), [(402, OutOfCredits), (403, NotAuthorized)])
def test_what_would_refuse_every_request_stops_the_rest(
    server: BflDouble, status: int, kind: type[KleinLabError]
) -> None:
    server.always("submit", Reply(status=status, body={"detail": "no"}))
    with closing(RemoteBackend(server.origin, KEY, max_active=2, pace=QUICK)) as remote:
        events = ends(remote.render([REQUEST] * 40))
    assert {type(event.error) for event in events if isinstance(event, Failed)} == {kind}
    assert len(events) == 40
    assert server.count("submit") <= 3


def test_one_refused_request_leaves_the_others_alone(server: BflDouble, remote: RemoteBackend) -> None:
    bad = replace(REQUEST, strength=Decimal(3))
    events = ends(remote.render([REQUEST, bad, REQUEST]))
    assert [type(event) for event in events] == [Rendered, Failed, Rendered]


# A server that misbehaves


@pytest.mark.parametrize("status", [429, 503])
def test_too_busy_is_tried_again(server: BflDouble, remote: RemoteBackend, status: int) -> None:
    server.script("submit", *[Reply(status=status, body={"detail": "busy"}, headers={"retry-after": "0"})] * 2)
    assert image(remote)
    assert server.count("submit") == 3


def test_a_storm_of_429_is_weathered(server: BflDouble, remote: RemoteBackend) -> None:
    server.limit = 2  # another program uses the account too
    events = ends(remote.render([replace(REQUEST, seed=seed) for seed in range(20)]))
    assert [type(event) for event in events] == [Rendered] * 20
    assert server.count("submit") > 20
    assert len(server.bodies) == 20


def test_429_for_ever_says_so(server: BflDouble) -> None:
    server.always("submit", Reply(status=429, body={"detail": "Too many active tasks"}))
    with closing(impatient(server)) as remote:
        busy = error(remote)
    assert isinstance(busy, TooManyTasks)
    assert "No image after 1 s." in str(busy)
    assert "Too many active tasks" in str(busy)
    assert server.count("submit") > 1


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=429, headers={"retry-after": "3600"}),
        Reply(status=503, headers={"retry-after": "3600"}),
        Reply(status=429, body={"error": "rate_limit_exceeded", "message": "Slow down", "retry_after": 3600}),
    ],
)
def test_a_wait_beyond_the_timeout_is_not_waited_for(server: BflDouble, remote: RemoteBackend, reply: Reply) -> None:
    server.always("submit", reply)
    refused = error(remote)
    assert isinstance(refused, TooManyTasks if reply.status == 429 else RemoteFailed)
    assert getattr(refused, "retry_after_s", 3600) == 3600
    assert server.count("submit") == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("5", 5), ("0.5", 0.5), ("", None), (None, None), ("soon", None), ("-3", None)],
)
def test_retry_after_in_seconds(header: str | None, seconds: float | None) -> None:
    assert read_retry_after(header) == seconds


def test_retry_after_as_a_date() -> None:
    until = read_retry_after(format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True))
    assert until is not None
    assert 3000 < until <= 3600
    assert read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_a_server_that_is_not_there(server: BflDouble) -> None:
    with BflDouble() as gone:
        origin = gone.origin
    with closing(RemoteBackend(origin, KEY, pace=QUICK)) as remote:
        failed = error(remote)
    assert isinstance(failed, RemoteFailed)
    assert f"{origin} could not be reached" in str(failed)
    assert "billed" not in str(failed)


def test_a_503_for_ever_is_given_up(server: BflDouble, remote: RemoteBackend) -> None:
    server.always("submit", Reply(status=503, body={"detail": "down"}))
    assert "says 503: down" in str(error(remote))
    assert server.count("submit") == QUICK.tries


@pytest.mark.parametrize("reply", [CUT, Reply(cut=True, body=b"")])
def test_a_request_that_broke_off_is_not_sent_again(server: BflDouble, remote: RemoteBackend, reply: Reply) -> None:
    server.script("submit", reply if reply.body else Reply(cut=True, headers={"content-length": "10"}, body=b""))
    lost = error(remote)
    assert isinstance(lost, RemoteFailed)
    assert "it was not sent again, and the task may exist and be billed" in str(lost)
    assert server.count("submit") == 1


def test_a_request_without_an_answer_ends_with_the_time(server: BflDouble) -> None:
    server.script("submit", SILENT)
    with closing(impatient(server)) as remote:
        lost = error(remote)
    assert isinstance(lost, RemoteFailed)
    assert "No image after 1 s. The request was on its way" in str(lost)
    assert "may exist and be billed" in str(lost)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=500, body=b"Internal Server Error"),
        Reply(status=502, body=b"<html>"),
        Reply(status=429, body={"detail": "slow down"}, headers={"retry-after": "0"}),
        Reply(status=404, body={"detail": "Not Found"}),
        Reply(body=b"{"),
        Reply(body=b"[" * 100_000),
        Reply(body=[]),
        Reply(body={"id": "7"}),
        Reply(body=polled("7", "Ready")),
        Reply(body=polled("7", "Ready", result={"sample": None})),
        CUT,
    ],
)
def test_a_paid_task_survives_passing_faults_of_polling(server: BflDouble, remote: RemoteBackend, reply: Reply) -> None:
    server.script("poll", reply, reply)
    assert image(remote)
    assert server.count("submit") == 1


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (Reply(body=b"{"), RemoteFailed, "cannot be read: {."),
        (Reply(status=404, body={"detail": "Not Found"}), NotFound, "says 404"),
        (Reply(status=403, body={"detail": "Not authenticated"}), NotAuthorized, "Not authenticated"),
        (Reply(status=302), RemoteFailed, "not followed"),
        (Reply(body=b" " * 2_000_000), RemoteFailed, "more than 1 MB"),
    ],
)
def test_polling_that_stays_strange_is_given_up_and_names_the_task(
    server: BflDouble, remote: RemoteBackend, reply: Reply, kind: type[KleinLabError], said: str
) -> None:
    server.always("poll", reply)
    failed = error(remote)
    assert isinstance(failed, kind)
    assert said in str(failed)
    assert f"Task {next(iter(server.bodies))} at {server.origin}" in str(failed) or "1 MB" in str(failed)
    assert server.count("poll") <= QUICK.tries


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(body=polled("7", "Generating")), "(last seen: Generating)"),
        (Reply(status=500, body={"detail": "broken"}), "says 500: broken. Task "),
        (SILENT, "(last seen: Pending)"),
    ],
)
def test_a_task_that_never_ends_runs_out_of_time(server: BflDouble, reply: Reply, said: str) -> None:
    server.always("poll", reply)
    with closing(impatient(server)) as remote:
        late = error(remote)
    assert isinstance(late, RemoteFailed)
    assert str(late).startswith("No image after 1 s.")
    assert said in str(late)
    assert f"Task {next(iter(server.bodies))}" in str(late)


@pytest.mark.parametrize(
    "url",
    [
        "http://{other}/v1/get_result?id=7",
        "https://{own}/v1/get_result?id=7",
        "http://user:secret@{own}/v1/get_result?id=7",
        "http://{own}@{other}/v1/get_result?id=7",
        "http://api.bfl.ai/v1/get_result?id=7",
        "https://api.bfl.ai.evil.example/v1/get_result?id=7",
        "https://evilbfl.ai/v1/get_result?id=7",
        "https://api.bfl.ai:8443/v1/get_result?id=7",
        "ftp://{own}/v1/get_result?id=7",
        "file:///etc/passwd",
        "/v1/get_result?id=7",
        "http://[",
        "",
    ],
)
def test_a_polling_host_that_the_server_has_no_business_to_name(
    server: BflDouble, remote: RemoteBackend, url: str
) -> None:
    with BflDouble() as other:
        own, foreign = (double.origin.removeprefix("http://") for double in (server, other))
        named = url.format(own=own, other=foreign)
        server.script("submit", Reply(body={"id": "7", "polling_url": named}))
        refused = error(remote)
        assert not other.calls
    assert isinstance(refused, RemoteFailed)
    assert "neither its own nor BFL's" in str(refused)
    assert server.count("poll") == 0


def test_another_host_of_bfl_is_polled_without_the_key_of_a_foreign_server(
    server: BflDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BflDouble() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.origin)
        url = "https://api.eu2.bfl.ai/v1/get_result?id=7"
        server.script("submit", Reply(body={"id": "7", "polling_url": url}))
        with closing(impatient(server)) as remote:
            late = error(remote)
        assert {call.path for call in proxy.calls} == {"api.eu2.bfl.ai:443"}
        assert KEY not in str(proxy.calls)
    assert "https://api.eu2.bfl.ai could not be reached" in str(late)


def test_a_proxy_is_not_asked_for_this_machine(server: BflDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with closing(RemoteBackend(server.origin, KEY, pace=QUICK)) as remote:
        assert image(remote)
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:9")
    with pytest.raises(Unavailable, match="proxy"):
        RemoteBackend(server.origin, KEY)


class Scripted:
    """Answers the poll that would be Ready with what `reply` makes of the task."""

    def __init__(self, server: BflDouble, reply: Callable[[str], Reply]) -> None:
        self._server = server
        self._reply = reply

    def __enter__(self) -> None:
        ready = self._server.ready
        self._server.ready = lambda task, **_: self._reply_with(ready, task)  # type: ignore[method-assign]

    def __exit__(self, *_error: object) -> None:
        del self._server.ready  # type: ignore[attr-defined]

    def _reply_with(self, ready: Callable[..., dict[str, Any]], task: str) -> Any:
        self._server.ready = ready  # type: ignore[method-assign]
        body = self._reply(task).body
        self.__enter__()
        return body


@pytest.mark.parametrize("host", ["http://127.0.0.1:9", "http://delivery.bfl.ai", "ftp://127.0.0.1", "nowhere"])
def test_an_image_is_fetched_by_https_or_from_the_server_itself(
    server: BflDouble, remote: RemoteBackend, host: str
) -> None:
    with Scripted(server, lambda task: Reply(body=server.ready(task, sample=f"{host}/x.png"))):
        refused = error(remote)
    assert isinstance(refused, RemoteFailed)
    assert "is not https" in str(refused)


def test_another_seed_is_no_quiet_picture(server: BflDouble, remote: RemoteBackend) -> None:
    with Scripted(server, lambda task: Reply(body=server.ready(task, seed=8))):
        refused = error(remote)
    assert "rendered with seed 8 instead of 7" in str(refused)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_expired_link_is_asked_for_once_more(server: BflDouble, remote: RemoteBackend, status: int) -> None:
    server.script("sample", Reply(status=status, body=b"<Error/>"))
    assert image(remote)
    assert server.count("sample") == 2
    server.always("sample", Reply(status=status, body=b"<Error/>"))
    expired = error(remote)
    assert isinstance(expired, RemoteFailed)
    assert f"its link answers {status}. Links expire ten minutes after the render" in str(expired)
    assert server.count("submit") == 2


@pytest.mark.parametrize("reply", [Reply(status=500), Reply(status=503), Reply(body=b"\x89PNG" * 99, cut=True)])
def test_a_download_survives_passing_faults(server: BflDouble, remote: RemoteBackend, reply: Reply) -> None:
    server.script("sample", reply, reply)
    assert image(remote)
    assert (server.count("submit"), server.count("sample")) == (1, 3)


def png(width: int, height: int) -> bytes:
    return draw({"seed": 1, "prompt": "x", "width": width, "height": height})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no image (0 bytes)"),
        (b"<html>no</html>", "is no image"),
        (png(64, 80)[:-40], "is no image"),
        (png(80, 64), "is 80 x 64 px, but 64 x 80 px were asked for"),
        (b"GIF89a" + bytes(100), "is no image"),
    ],
)
def test_what_is_no_picture_of_the_size_is_an_error(
    server: BflDouble, remote: RemoteBackend, data: bytes, said: str
) -> None:
    server.always("sample", Reply(body=data))
    failed = error(remote)
    assert isinstance(failed, RemoteFailed)
    assert said in str(failed)


def test_an_endless_image_is_not_read(
    server: BflDouble, remote: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_http, "MAX_IMAGE_BYTES", 1024 * 1024)
    server.always("sample", Reply(body=bytes(3 * 1024 * 1024)))
    assert "more than 1 MB" in str(error(remote))


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_other_file_types_are_read(server: BflDouble, remote: RemoteBackend, file_format: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 80), (9, 99, 200)).save(buffer, format=file_format)
    server.always("sample", Reply(body=buffer.getvalue()))
    assert image(remote).image.size == (64, 80)


# Stopping


def test_cancel_ends_every_request_and_the_polling(server: BflDouble, remote: RemoteBackend) -> None:
    server.hold = True
    cancel = threading.Event()
    ended, begun = [], set()
    for event in remote.render([REQUEST] * 30, cancel=cancel):
        if isinstance(event, Failed):
            ended.append(event)
        elif isinstance(event, Progress):
            begun |= set(event.indices)
            if len(begun) == 24:
                cancel.set()
    assert sorted(event.index for event in ended) == list(range(30))
    assert {type(event.error) for event in ended} == {Cancelled}
    sent = [str(event.error) for event in ended if "billed" in str(event.error)]
    assert len(sent) == len(server.bodies) == 24
    assert {task for task in server.bodies if any(task in said for said in sent)} == set(server.bodies)
    require_quiet(server, remote)


def require_quiet(server: BflDouble, remote: RemoteBackend) -> None:
    """Nothing that was stopped is polled any more."""
    server.hold, server.active = False, set()
    assert image(remote)  # what was on its way has arrived meanwhile
    before = server.count("submit"), server.count("poll")
    assert image(remote)
    assert (server.count("submit"), server.count("poll")) == (before[0] + 1, before[1] + 3)


def test_cancelled_before_it_began_nothing_is_sent(server: BflDouble, remote: RemoteBackend) -> None:
    cancel = threading.Event()
    cancel.set()
    events = list(remote.render([REQUEST] * 3, cancel=cancel))
    assert [(event.index, type(event.error)) for event in events if isinstance(event, Failed)] == [
        (index, Cancelled) for index in range(3)
    ]
    assert not server.calls


def test_closing_the_iterator_stops_what_is_left(server: BflDouble, remote: RemoteBackend) -> None:
    server.hold = True
    events = remote.render([REQUEST] * 5)
    next(events)
    events.close()  # type: ignore[attr-defined]
    require_quiet(server, remote)


def test_close_ends_what_is_under_way(server: BflDouble) -> None:
    server.hold = True
    remote = RemoteBackend(server.origin, KEY, pace=QUICK)
    events = remote.render([REQUEST] * 2)
    next(events)
    remote.close()
    assert {type(event.error) for event in ends(events) if isinstance(event, Failed)} == {Cancelled}
    remote.close()
    with pytest.raises(Unavailable, match="closed"):
        list(remote.render([REQUEST]))


# The key, and where it goes


def test_the_key_is_nowhere_but_on_the_wire(server: BflDouble, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.always("poll", Reply(status=403, body={"detail": f"The key {KEY} is revoked"}))
    with closing(RemoteBackend(server.origin, KEY, pace=QUICK)) as remote:
        refused = error(remote)
        lost = RemoteBackend("http://127.0.0.1:9", KEY, pace=replace(QUICK, tries=1))
        with closing(lost):
            unreached = error(lost)
        shown = [repr(remote), str(remote), str(vars(remote)), repr(vars(remote._http)), str(remote.models())]
    for failed in (refused, unreached):
        shown += ["".join(traceback.format_exception(failed)), repr(failed)]
        cause: BaseException | None = failed
        while cause is not None:
            shown += [repr(vars(cause)), str(getattr(getattr(cause, "request", None), "headers", ""))]
            cause = cause.__cause__ or cause.__context__
    assert "The key *** is revoked" in str(refused)
    assert server.of("submit")[0].headers["x-key"] == KEY
    assert KEY not in "".join(shown)
    assert caplog.text
    assert KEY not in caplog.text
    assert pickle.dumps(str(refused))


@pytest.mark.parametrize("key", ["two words", "bfl_\n1", "schlüssel"])
def test_a_malformed_key_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(InvalidInput, match="API key") as refused:
        RemoteBackend("global", key)
    assert key not in str(refused.value)


def test_a_server_may_ask_for_no_key() -> None:
    with BflDouble(key=None) as server, closing(RemoteBackend(server.origin, " ", pace=QUICK)) as remote:
        assert image(remote)
        assert not [call for call in server.calls if "x-key" in call.headers]


@pytest.mark.parametrize(
    ("place", "origin"),
    [
        ("global", "https://api.bfl.ai"),
        ("EU", "https://api.eu.bfl.ai"),
        ("us", "https://api.us.bfl.ai"),
        ("https://api.us1.bfl.ai/v1/", "https://api.us1.bfl.ai"),
        ("http://127.0.0.1:7860/", "http://127.0.0.1:7860"),
        ("https://lab.example/klein", "https://lab.example/klein"),
    ],
)
def test_regions_and_base_urls(place: str, origin: str) -> None:
    with closing(RemoteBackend(place, KEY)) as remote:
        assert remote.origin == origin
        assert repr(remote) == f"RemoteBackend({origin!r})"


@pytest.mark.parametrize(
    "place",
    ["mars", "", "127.0.0.1:7860", "ftp://api.bfl.ai", "https://", "https://me:pw@lab.example", "https://a/?b=c",
     "http://api.bfl.ai", "http://["],
)  # fmt: skip
def test_what_is_no_base_url(place: str) -> None:
    with pytest.raises(InvalidInput, match="Remote:") as refused:
        RemoteBackend(place, KEY)
    assert "pw" not in str(refused.value)


def test_what_can_run_where_is_known_without_asking(server: BflDouble, remote: RemoteBackend) -> None:
    with closing(RemoteBackend("eu", None)) as without, closing(RemoteBackend("eu", KEY)) as bfl:
        assert {status.available for status in without.models()} == {False}
        assert "BFL_API_KEY" in without.models()[0].reason
        there = {status.weights: status for status in bfl.models() if status.available}
        missing = {status.weights: status.reason for status in bfl.models() if not status.available}
    assert set(there) == {"klein-4b", "klein-9b", "klein-9b-kv", "klein-base-4b", "klein-base-9b"}
    assert there["klein-4b"].digest == "remote:https://api.eu.bfl.ai:flux-2-klein-4b-finetuned"
    assert set(missing) == {"pocket", "pocket-base"}
    assert "does not have the pocket klein" in missing["pocket"]
    assert all(status.available for status in remote.models())
    assert len({status.digest for status in remote.models()}) == len(remote.models())
    kv = [status.precision for status in remote.models() if status.weights == "klein-9b-kv"]
    assert kv == ["fp8", "bf16"]
    assert not server.calls
