"""Stopping, and where the key goes."""

import logging
import pickle
import threading
import traceback
from contextlib import closing
from dataclasses import replace

import pytest

from lora_runtime.backends.remote import RemoteBackend
from lora_runtime.errors import (
    Cancelled,
    InvalidInput,
    Unavailable,
)
from lora_runtime.values import Failed, Progress
from tests.bfl_doubles import KEY, BflDouble, Reply

from .calls import QUICK, REQUEST, ends, error, image

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
        assert remote.server == origin
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
