"""The BFL routes over real HTTP: every body and status field for field."""

import io
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import ENDPOINTS, POCKET
from lora_runtime.errors import KleinLabError, Moderated, RenderFailed
from lora_runtime.png import read_metadata
from lora_runtime.values import ModelStatus, Precision, RenderRequest
from tests.api_server import Reply, Server, run_server
from tests.drawing_backend import DrawingBackend
from tests.lora_files import make_adapter, write_diffusers

POLL_KEYS = {"id", "status", "result", "progress", "details", "preview"}
BODY = {"prompt": "a red cat in the meadow", "seed": 7, "width": 64, "height": 64}
STYLE = {**BODY, "finetune_id": "official/style"}
POCKET_URL = "/v1/flux-2-klein-pocket"
FINETUNED_URL = "/v1/flux-2-klein-pocket-finetuned"


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    with run_server(DrawingBackend(), home) as server:
        yield server


def submit(server: Server, body: object = BODY, *, path: str = POCKET_URL, key: str | None = None) -> dict[str, Any]:
    reply = server.ask("POST", path, body, key=key)
    assert reply.status == 200, reply.body
    accepted: dict[str, Any] = reply.json
    return accepted


def render(server: Server, body: object = BODY, *, path: str = POCKET_URL) -> dict[str, Any]:
    return server.wait(submit(server, body, path=path)["polling_url"])


def open_image(reply: Reply) -> Image.Image:
    return Image.open(io.BytesIO(reply.body))


def test_a_finetune_is_rendered_by_the_pocket(local_backend: LocalBackend, home: Path) -> None:
    with run_server(local_backend, home) as server:
        images = []
        for path, extra in [(FINETUNED_URL, {"finetune_strength": 0.0}), (FINETUNED_URL, {}), (POCKET_URL, {})]:
            ended = render(server, {**STYLE, "output_format": "png", **extra}, path=path)
            assert ended["status"] == "Ready", ended
            images.append(open_image(server.ask("GET", ended["result"]["sample"])).convert("RGB").tobytes())
    assert images[0] == images[2], "strength 0 is the base model"
    assert images[0] != images[1]


def test_submit_answers_as_bfl_does(server: Server) -> None:
    accepted = submit(server)
    assert accepted.keys() == {"id", "polling_url", "cost", "input_mp", "output_mp"}
    assert str(uuid.UUID(accepted["id"], version=4)) == accepted["id"]
    assert accepted["polling_url"] == f"{server.url}/v1/get_result?id={accepted['id']}"
    assert (accepted["cost"], accepted["input_mp"], accepted["output_mp"]) == (0.1, 0.0, 0.0)


def test_a_ready_poll_has_all_keys(server: Server) -> None:
    accepted = submit(server)
    ended = server.wait(accepted["polling_url"])
    assert ended.keys() == POLL_KEYS
    assert (ended["id"], ended["status"], ended["progress"]) == (accepted["id"], "Ready", 1.0)
    assert ended["details"] is ended["preview"] is None
    result = ended["result"]
    assert result.keys() == {"sample", "prompt", "seed", "start_time", "end_time", "duration"}
    assert (result["prompt"], result["seed"]) == (BODY["prompt"], 7)
    assert result["duration"] == pytest.approx(result["end_time"] - result["start_time"], abs=1e-3)


def test_a_pending_poll_has_all_keys_and_a_progress(home: Path) -> None:
    go_on = threading.Event()

    def wait(_request: RenderRequest) -> None:
        go_on.wait(60)

    with run_server(DrawingBackend(fails=wait), home) as server:
        accepted = submit(server)
        body = server.ask("GET", accepted["polling_url"]).json
        assert body.keys() == POLL_KEYS
        assert body["status"] == "Pending"
        assert 0 <= body["progress"] <= 1
        assert body["result"] is None
        go_on.set()
        assert server.wait(accepted["polling_url"])["status"] == "Ready"


def test_an_unknown_task_is_not_found_with_status_200(server: Server) -> None:
    reply = server.ask("GET", "/v1/get_result?id=nothing")
    assert (reply.status, reply.json) == (
        200,
        {**dict.fromkeys(POLL_KEYS), "id": "nothing", "status": "Task not found"},
    )
    assert server.ask("GET", "/v1/get_result").status == 422


@pytest.mark.parametrize(
    ("error", "status", "details"),
    [
        (RenderFailed("The model failed. Try again."), "Error", {"error": "The model failed. Try again."}),
        (
            Moderated("No.", stage="request", reasons=("Derivative Works Filter",)),
            "Request Moderated",
            {"Moderation Reasons": ["Derivative Works Filter"]},
        ),
        (Moderated("No.", stage="content", reasons=("NSFW",)), "Content Moderated", {"Moderation Reasons": ["NSFW"]}),
    ],
)
def test_what_fails_ends_with_a_documented_status(
    home: Path, error: KleinLabError, status: str, details: dict[str, object]
) -> None:
    with run_server(DrawingBackend(fails=lambda _request: error), home) as server:
        ended = render(server)
    assert ended == {**dict.fromkeys(POLL_KEYS), "id": ended["id"], "status": status, "details": details}


@pytest.mark.parametrize("output_format", ["jpeg", "png", "webp", None])
def test_results_have_their_type_and_name(server: Server, output_format: str | None) -> None:
    name = output_format or "jpeg"
    ended = render(server, {**STYLE, "output_format": output_format}, path=FINETUNED_URL)
    url = ended["result"]["sample"]
    assert f"/sample.{name}?" in url
    reply = server.ask("GET", url)
    assert reply.headers["content-type"] == f"image/{name}"
    assert reply.headers["content-disposition"] == f'inline; filename="sample.{name}"'
    assert server.ask("HEAD", url).status == 200
    image = open_image(reply)
    assert ((image.format or "").lower(), image.size) == (name, (64, 64))


def test_a_png_carries_what_makes_it_again(server: Server, tmp_path: Path) -> None:
    ended = render(server, {**STYLE, "output_format": "png", "finetune_strength": 0.7}, path=FINETUNED_URL)
    (tmp_path / "a.png").write_bytes(server.ask("GET", ended["result"]["sample"]).body)
    carried = read_metadata(tmp_path / "a.png")
    assert carried is not None
    assert (carried["strength"], carried["lora"], carried["seed"]) == (0.7, "official/style", 7)


def test_a_result_is_signed_and_expires_with_its_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = render(server)
    url = ended["result"]["sample"]
    assert "se=" in url
    rest, signature = url.split("sig=")
    for forged in (
        url.replace("sample.jpeg", "sample.png"),
        url.replace("se=20", "se=21"),
        f"{rest}sig={'A' if signature[0] != 'A' else 'B'}{signature[1:]}",
        url.partition("?")[0],
    ):
        reply = server.ask("GET", forged)
        assert (reply.status, reply.json["detail"]) == (403, "This URL was not signed here. Poll the task for its own.")
    task = server.service.tasks.find(ended["id"])
    assert task is not None
    assert task.ended is not None
    assert task.expires == task.ended + 600
    monkeypatch.setattr(server.service.tasks, "_clock", lambda: task.ended + 600)
    assert server.ask("GET", url).status == 404
    assert server.ask("GET", f"/v1/get_result?id={ended['id']}").json["status"] == "Task not found"
    server.service.tasks.expire(server.service.blobs)
    assert not list(server.service.blobs.folder.rglob("*.jpeg"))


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("prompt", None, "string_type"),
        ("prompt", " ", "value_error"),
        ("seed", 2**63, "less_than_equal"),
        ("seed", -2, "greater_than_equal"),
        ("seed", "seven", "int_parsing"),
        ("width", 63, "greater_than_equal"),
        ("height", -1, "greater_than_equal"),
        ("safety_tolerance", 6, "less_than_equal"),
        ("output_format", "gif", "literal_error"),
        ("webhook_url", "", "string_too_short"),
        ("webhook_url", "ftp://example.com/", "url_parsing"),
        ("webhook_url", "https://example.com/" + "x" * 2083, "string_too_long"),
        ("finetune_id", None, "string_type"),
        ("finetune_strength", 2.01, "less_than_equal"),
        ("finetune_strength", -0.1, "greater_than_equal"),
        ("finetune_strength", "strong", "float_parsing"),
    ],
)
def test_each_bad_field_is_a_fastapi_list(server: Server, field: str, value: object, kind: str) -> None:
    reply = server.ask("POST", FINETUNED_URL, {**STYLE, field: value})
    assert reply.status == 422
    (problem,) = reply.json["detail"]
    assert problem.keys() == {"loc", "msg", "type"}
    assert (problem["loc"], problem["type"]) == (["body", field], kind)


def test_missing_fields_and_broken_json(server: Server) -> None:
    reply = server.ask("POST", FINETUNED_URL, {})
    assert [problem["loc"][-1] for problem in reply.json["detail"]] == ["prompt", "finetune_id"]
    assert server.ask("POST", FINETUNED_URL, b"{").status == 422
    assert (
        server.ask("POST", FINETUNED_URL, b'{"prompt": "x", "finetune_id": "y", "finetune_strength": NaN}').status
        == 422
    )
    assert server.ask("POST", FINETUNED_URL, b'{"prompt": "x", "finetune_id": "\\ud800"}').status == 422
    assert server.ask("POST", "/v1/flux-2-unknown", BODY).status == 404
    assert server.ask("GET", POCKET_URL).status == 405


def test_sizes_are_rounded_and_auto_is_zero_or_null(server: Server) -> None:
    for asked, rendered in [(0, 128), (None, 128), (64, 64), (71, 64), (72, 80), (250, 256), (256, 256)]:
        ended = render(server, {"prompt": "x", "width": asked, "height": 64})
        image = open_image(server.ask("GET", ended["result"]["sample"]))
        assert image.size == (rendered, 64)
    reply = server.ask("POST", POCKET_URL, {"prompt": "x", "width": 1024})
    assert reply.status == 422
    assert "more than pocket klein renders" in reply.json["detail"][0]["msg"]


def test_the_result_names_the_seed_that_acted_and_unknown_keys_do_not_matter(server: Server) -> None:
    body = {**BODY, "seed": 2**32 - 1, "aspect_ratio": "16:9", "num_images": 3, "user": "me", "safety_tolerance": 5}
    assert render(server, body)["result"]["seed"] == 2**32 - 1
    assert render(server, {**BODY, "seed": 2**32 + 7})["result"]["seed"] == 7
    assert render(server, {**BODY, "seed": 2**63 - 1})["result"]["seed"] == 2**32 - 1
    seeds = {render(server, {**BODY, "seed": seed})["result"]["seed"] for seed in (None, None, -1)}
    assert len(seeds) == 3


def test_a_bundled_lora_goes_by_its_plain_name(server: Server) -> None:
    images = [
        server.ask("GET", render(server, {**STYLE, "finetune_id": name}, path=FINETUNED_URL)["result"]["sample"]).body
        for name in ("style", "official/style")
    ]
    assert images[0] == images[1]


def test_a_strength_is_the_number_that_was_written(server: Server) -> None:
    backend = server.service.backend
    assert isinstance(backend, DrawingBackend)
    for strength in (0, 0.7, 1.15, 2):
        render(server, {**STYLE, "finetune_strength": strength}, path=FINETUNED_URL)
    render(server, STYLE, path=FINETUNED_URL)
    assert [str(request.strength) for request in backend.rendered] == ["0.0", "0.7", "1.15", "2.0", "1.0"]


def test_an_endpoint_that_cannot_run_here_is_refused_at_once(server: Server) -> None:
    for path, reason in [
        ("/v1/flux-2-klein-pocket-base", "Not installed: run make."),
        ("/v1/flux-2-klein-4b", "does not run klein-4b"),
    ]:
        reply = server.ask("POST", path, BODY)
        assert reply.status == 503
        assert reason in reply.json["detail"]
    assert server.service.tasks.active("local") == 0


def test_a_submit_asks_the_backend_for_one_status(home: Path) -> None:
    asked: list[str] = []

    class Asked(DrawingBackend):
        def status(self, weights: str, precision: Precision | None) -> ModelStatus:
            asked.append(weights)
            return next(status for status in super().models() if status.weights == weights)

        def models(self) -> Sequence[ModelStatus]:
            raise AssertionError("all of them were asked for")

    with run_server(Asked(), home) as server:
        submit(server)
    assert asked == ["pocket"]


@pytest.fixture
def keys(server: Server) -> dict[str, str]:
    """A key each of two organizations; acme has a finetune, `mine`."""
    return {name: server.service.accounts.create_key(name)[1] for name in ("acme", "zenith")}


@pytest.fixture
def add_finetune(server: Server, tmp_path: Path) -> Callable[..., str]:
    def add(organization: str, name: str, weights: str = "pocket") -> str:
        path = write_diffusers(tmp_path / f"{name}.safetensors", make_adapter(POCKET))
        return server.service.finetunes.add_file(
            organization, path, name=name, weights=weights, trigger_phrase="TOK"
        ).id

    return add


def test_keys_are_demanded_once_there_are_any(server: Server) -> None:
    assert server.ask("GET", "/v1/credits").status == 200
    assert server.ask("GET", "/v1/credits", key="whatever").status == 200
    record, key = server.service.accounts.create_key("acme")
    for path in ("/v1/credits", "/v1/my_finetunes", "/v1/finetune_details?finetune_id=x"):
        assert server.ask("GET", path, key=key).status in (200, 404)
        missing = server.ask("GET", path)
        assert (missing.status, missing.json) == (403, {"detail": "Not authenticated"})
        wrong = server.ask("GET", path, key="bfl_wrong")
        assert (wrong.status, wrong.json) == (403, {"detail": "Not authenticated - Invalid Authentication"})
    assert server.ask("POST", POCKET_URL, BODY).status == 403
    accepted = submit(server, key=key)
    assert server.ask("GET", accepted["polling_url"]).status == 200, "polls need no key"
    server.service.accounts.revoke_key(record.id)
    assert server.ask("GET", "/v1/credits", key=key).status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-for": "203.0.113.9"},
        {"x-forwarded-for": "127.0.0.1, 203.0.113.9"},
        {"x-real-ip": "203.0.113.9"},
        {"forwarded": "for=203.0.113.9"},
        {"host": "evil.example"},
        {"x-forwarded-host": "lab.example"},
    ],
)
def test_without_keys_only_this_machine_is_served(server: Server, headers: dict[str, str]) -> None:
    reply = server.ask("GET", "/v1/credits", headers=headers)
    assert reply.status == 403
    assert "keys create" in reply.json["detail"]


def test_urls_are_those_that_a_proxy_shows(server: Server, keys: dict[str, str]) -> None:
    headers = {"x-forwarded-proto": "https", "x-forwarded-host": "lab.example:8443", "x-forwarded-prefix": "/klein"}
    accepted = server.ask("POST", POCKET_URL, BODY, key=keys["acme"], headers=headers).json
    assert accepted["polling_url"] == f"https://lab.example:8443/klein/v1/get_result?id={accepted['id']}"
    server.wait(f"/v1/get_result?id={accepted['id']}")
    ended = server.ask("GET", f"/v1/get_result?id={accepted['id']}", headers=headers).json
    assert ended["result"]["sample"].startswith("https://lab.example:8443/klein/v1/results/")
    odd = {"x-forwarded-proto": "javascript", "x-forwarded-host": "a b<", "x-forwarded-prefix": "//evil"}
    plain = server.ask("POST", POCKET_URL, BODY, key=keys["acme"], headers=odd).json
    assert plain["polling_url"].startswith(f"{server.url}/v1/")


def test_a_public_url_goes_first(home: Path) -> None:
    with run_server(DrawingBackend(), home, public_url="https://lab.example/klein/") as server:
        assert submit(server)["polling_url"].startswith("https://lab.example/klein/v1/get_result?id=")


def test_a_finetune_is_called_by_its_owner_and_by_whom_it_is_granted(
    server: Server, keys: dict[str, str], add_finetune: Callable[..., str]
) -> None:
    add_finetune("acme", "mine")
    own = server.ask("POST", FINETUNED_URL, {**BODY, "finetune_id": "mine"}, key=keys["acme"])
    assert own.status == 200
    answers = {
        name: server.ask("POST", FINETUNED_URL, {**BODY, "finetune_id": name}, key=keys["zenith"])
        for name in ("acme/mine", "acme/none")
    }
    assert {reply.status for reply in answers.values()} == {404}
    texts = {reply.json["detail"].replace(name, "NAME") for name, reply in answers.items()}
    assert len(texts) == 1, "unknown and not granted look the same"
    server.service.finetunes.grant("acme", "mine", "zenith")
    granted = server.ask("POST", FINETUNED_URL, {**BODY, "finetune_id": "acme/mine"}, key=keys["zenith"])
    assert granted.status == 200
    server.wait(granted.json["polling_url"])
    server.wait(own.json["polling_url"])
    spent = {name: server.service.accounts.spent(name)[0] for name in keys}
    assert spent == {"acme": 1, "zenith": 1}, "the caller pays, whoever owns the finetune"


def test_a_finetune_belongs_to_one_endpoint(server: Server, add_finetune: Callable[..., str]) -> None:
    add_finetune("local", "mine", "pocket-base")
    reply = server.ask("POST", FINETUNED_URL, {**BODY, "finetune_id": "mine"})
    assert reply.status == 400
    assert reply.json["detail"] == (
        "Finetune 'mine' was registered for pocket-base, which is not what flux-2-klein-pocket-finetuned runs. "
        "POST it to /v1/flux-2-klein-pocket-base-finetuned."
    )


def test_the_finetune_routes_have_bfls_shapes(server: Server, add_finetune: Callable[..., str]) -> None:
    add_finetune("local", "mine")
    listed = server.ask("GET", "/v1/my_finetunes").json
    assert listed.keys() == {"finetunes"}
    assert listed["finetunes"][:2] == ["mine", "official/style"]
    for finetune_id in listed["finetunes"]:
        details = server.ask("GET", f"/v1/finetune_details?finetune_id={finetune_id}").json["finetune_details"]
        assert details["finetune_id"] == finetune_id
        assert details["endpoint"] in ENDPOINTS
    details = server.ask("GET", "/v1/finetune_details?finetune_id=mine").json["finetune_details"]
    assert (details["base_model"], details["trigger_phrase"], details["rank"]) == ("pocket", "TOK", [4])
    assert server.ask("GET", "/v1/finetune_details").status == 422
    assert server.ask("GET", "/v1/finetune_details?finetune_id=none").status == 404
    deleted = server.ask("POST", "/v1/delete_finetune", {"finetune_id": "mine"})
    assert deleted.status == 200
    assert deleted.json.keys() == {"status", "message", "deleted_finetune_id", "timestamp"}
    assert deleted.json["deleted_finetune_id"] == "mine"
    assert server.ask("POST", "/v1/delete_finetune", {"finetune_id": "mine"}).status == 404
    assert server.ask("POST", "/v1/delete_finetune", {"finetune_id": "official/style"}).status == 403
    assert server.ask("POST", "/v1/delete_finetune", {}).status == 422


def test_a_file_deleted_by_hand_breaks_only_its_own_finetune(server: Server, add_finetune: Callable[..., str]) -> None:
    add_finetune("local", "mine")
    server.service.finetunes.find("local", "mine").lora.path.unlink()
    assert server.ask("GET", "/v1/my_finetunes").json["finetunes"][0] == "mine"
    assert server.ask("GET", "/v1/finetune_details?finetune_id=mine").json["finetune_details"]["rank"] == []
    reply = server.ask("POST", FINETUNED_URL, {**BODY, "finetune_id": "mine"})
    assert reply.status == 404
    assert "has gone" in reply.json["detail"]
    assert server.ask("POST", "/v1/delete_finetune", {"finetune_id": "mine"}).status == 200


def test_a_deleted_finetune_does_not_break_the_task_that_was_accepted(home: Path, tmp_path: Path) -> None:
    path = write_diffusers(tmp_path / "mine.safetensors", make_adapter(POCKET))
    with run_server(DrawingBackend(), home) as server:
        server.service.workers.close()  # nobody renders yet
        server.service.finetunes.add_file("local", path, name="mine", weights="pocket")
        accepted = submit(server, {**BODY, "finetune_id": "mine"}, path=FINETUNED_URL)
        server.service.finetunes.remove("local", "mine")
    with run_server(DrawingBackend(), home) as server:
        assert server.wait(f"/v1/get_result?id={accepted['id']}")["status"] == "Ready"


def test_credits_are_shown_and_spent(server: Server, keys: dict[str, str]) -> None:
    assert server.ask("GET", "/v1/credits", key=keys["acme"]).json == {"credits": 1_000_000.0}
    server.service.accounts.add_credits("acme", Decimal("0.25"))
    for left in (0.15, 0.05):
        server.wait(submit(server, key=keys["acme"])["polling_url"])
        assert server.ask("GET", "/v1/credits", key=keys["acme"]).json == {"credits": left}
    refused = server.ask("POST", POCKET_URL, BODY, key=keys["acme"])
    assert refused.status == 402
    assert refused.json["detail"].startswith("Insufficient credits")
    assert server.ask("POST", POCKET_URL, BODY, key=keys["zenith"]).status == 200


def test_too_many_active_tasks_are_told_when_to_come_back(home: Path) -> None:
    go_on = threading.Event()

    def wait(_request: RenderRequest) -> None:
        go_on.wait(60)

    with run_server(DrawingBackend(fails=wait), home) as server:
        accepted = [submit(server) for _ in range(24)]
        refused = server.ask("POST", POCKET_URL, BODY)
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "24 tasks of local are active" in refused.json["detail"]
        go_on.set()
        assert {server.wait(task["polling_url"])["status"] for task in accepted} == {"Ready"}
        submit(server)
