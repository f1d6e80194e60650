"""What is sent, what comes back, and how a task can end."""

import base64
import hashlib
import io
import threading
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_runtime.backends.remote import RemoteBackend
from lora_runtime.errors import (
    InvalidInput,
    KleinLabError,
    Moderated,
    NotAuthorized,
    NotFound,
    OutOfCredits,
    RemoteFailed,
)
from lora_runtime.values import Failed, LoraRef, Progress, Reference, Rendered
from tests.bfl_doubles import KEY, BflDouble, Reply, draw, polled

from .calls import QUICK, REQUEST, Scripted, ends, error, image

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
        "input_mp": "0",
        "output_mp": "1.98",
    }
    assert (rendered.cost, rendered.request_id) == (4.5, next(iter(server.bodies)))
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
    assert (rendered.cost, rendered.request_id) == (None, task)
    assert rendered.timing.seconds > 0


def test_a_later_cost_and_another_prompt_are_told(server: BflDouble, remote: RemoteBackend) -> None:
    def settle(task: str) -> Reply:
        return Reply(body={**server.ready(task, prompt="A red fox, stretching."), "cost": 1.4})

    with Scripted(server, settle):
        rendered = image(remote)
    assert (rendered.cost, rendered.provenance["prompt_used"]) == (1.4, "A red fox, stretching.")


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
