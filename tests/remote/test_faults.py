"""A server that misbehaves on purpose: what is tried again, what is given up, and what is said."""

import io
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from PIL import Image

from lora_runtime.backends import remote_http
from lora_runtime.backends.bfl import read_retry_after
from lora_runtime.backends.remote import RemoteBackend
from lora_runtime.errors import (
    KleinLabError,
    NotAuthorized,
    NotFound,
    RemoteFailed,
    TooManyTasks,
    Unavailable,
)
from lora_runtime.values import Rendered
from tests.bfl_doubles import CUT, KEY, SILENT, BflDouble, Reply, draw, polled

from .calls import QUICK, REQUEST, Scripted, ends, error, image, impatient


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
