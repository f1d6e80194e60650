"""One contract for all backends: the pocket here, remote -> our own server, remote -> recorded replies of BFL; and the
engines of two nodes, where Ray is installed."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from lora_runtime.backends.base import Backend, choose_status
from lora_runtime.backends.local import LocalBackend
from lora_runtime.backends.open import has_ray
from lora_runtime.backends.remote import Pace, RemoteBackend
from lora_runtime.errors import Cancelled, KleinLabError, NotFound, Unavailable
from lora_runtime.lora.library import find_lora
from lora_runtime.requests import find_status, make_request
from lora_runtime.values import Failed, LoraRef, ModelStatus, Precision, Progress, Rendered, RenderEvent, RenderRequest
from tests.api_server import run_server
from tests.bfl_doubles import KEY, BflDouble

SAME = 0.5
"""Mean difference of channel values (0 to 255) below which two images are one: more than FP32 makes of another batch
shape. Images of other seeds or strengths are at more than twice that."""

QUICK = Pace(first_poll_s=0.02, longest_poll_s=0.1, first_retry_s=0.02, longest_retry_s=0.1, tries=3)


class Fp32:
    """With FP32 as the default: what BF16 makes of another batch shape may be more than `SAME`."""

    def models(self) -> Sequence[ModelStatus]:
        return sorted(super().models(), key=lambda status: status.precision != "fp32")  # type: ignore[misc]

    def status(self, weights: str, precision: Precision | None) -> ModelStatus:
        return choose_status(self.models(), weights, precision, backend="local")


class Fp32Backend(Fp32, LocalBackend):
    """The real one."""


def open_fp32_cluster(address: str) -> Backend:
    """The engines of a Ray cluster; imported here, as Ray is not always installed."""
    from lora_runtime.backends.cluster import ClusterBackend

    return type("Fp32Cluster", (Fp32, ClusterBackend), {})(address)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A backend, and how to make another one like it that may be closed."""

    backend: Backend
    lora: LoraRef
    again: Callable[[], Backend]

    def request(self, **changes: object) -> RenderRequest:
        made = make_request(find_status(self.backend), prompt="a red cat", seed=7, width=64, height=64, lora=self.lora)
        return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fp32_backend() -> Iterator[Fp32Backend]:
    with contextlib.closing(Fp32Backend()) as backend:
        yield backend


KINDS = ["local", "remote", "recorded", *([pytest.param("cluster", marks=pytest.mark.cluster)] if has_ray() else [])]


@pytest.fixture(params=KINDS, scope="module")
def subject(
    request: pytest.FixtureRequest, fp32_backend: Fp32Backend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    style = find_lora("style")
    with contextlib.ExitStack() as stack:
        if request.param == "local":
            yield Subject(backend=fp32_backend, lora=style, again=Fp32Backend)
            return
        if request.param == "cluster":
            open_again = partial(open_fp32_cluster, request.getfixturevalue("nodes").address)
            backend = stack.enter_context(contextlib.closing(open_again()))
            yield Subject(backend=backend, lora=style, again=open_again)
            return
        finetunes = None
        if request.param == "remote":
            server = stack.enter_context(run_server(fp32_backend, tmp_path_factory.mktemp("server")))
            place, (_, key) = server.url, server.service.accounts.create_key("acme")
        else:
            place, key = stack.enter_context(BflDouble()).origin, KEY
            finetunes = {style.sha256: "my-style"}

        def again() -> Backend:
            return RemoteBackend(place, key, finetunes=finetunes, pace=QUICK)

        backend = stack.enter_context(contextlib.closing(again()))
        yield Subject(backend=backend, lora=style, again=again)


def ends(events: Iterator[RenderEvent]) -> list[Rendered | Failed]:
    return sorted((event for event in events if not isinstance(event, Progress)), key=lambda event: event.index)


def pixels(backend: Backend, requests: Sequence[RenderRequest]) -> np.ndarray:
    """(B, H, W, 3)"""
    found = []
    for event in ends(backend.render(requests)):
        assert isinstance(event, Rendered), event
        found.append(np.asarray(event.image, dtype=np.int16))
    return np.stack(found)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean(axis=(-3, -2, -1)).max())


def all_differ(images: np.ndarray) -> bool:
    return all(difference(one, other) > 2 * SAME for one, other in combinations(images, 2))


def test_each_request_ends_once_with_its_own_image(subject: Subject) -> None:
    requests = [subject.request(seed=seed, strength=Decimal(seed) / 4) for seed in range(5)]
    events = list(subject.backend.render(requests))
    ended = [event for event in events if not isinstance(event, Progress)]
    assert sorted(event.index for event in ended) == list(range(5))
    for event in ended:
        assert isinstance(event, Rendered)
        assert (event.image.mode, event.image.size) == ("RGB", (64, 64))
        assert event.timing.seconds > 0
        assert event.timing.batch_size >= 1
        assert event.timing.waited_seconds >= 0
        assert event.provenance["backend"] == subject.backend.name
    together = pixels(subject.backend, requests)
    assert all_differ(together)
    assert difference(pixels(subject.backend, requests[3:4]), together[3:4]) <= SAME


def test_progress_counts_up_between(subject: Subject) -> None:
    request = subject.request()
    *progress, last = subject.backend.render([request])
    assert isinstance(last, Rendered)
    steps = [event.step for event in progress if isinstance(event, Progress)]
    assert len(steps) == len(progress) > 0
    assert steps == sorted(set(steps))
    assert all(0 <= step <= request.steps for step in steps)
    assert {event.indices for event in progress if isinstance(event, Progress)} == {(0,)}


def test_strength_0_is_the_base_model_and_each_strength_acts(subject: Subject) -> None:
    base = subject.request(lora=None, strength=Decimal(0))
    others = [subject.request(strength=Decimal(strength)) for strength in ("0", "0.5", "1", "2")]
    plain, zero, *acted = pixels(subject.backend, [base, *others])
    assert difference(zero, plain) <= SAME
    assert all_differ(np.stack([plain, *acted]))


def test_a_request_that_cannot_be_rendered_fails_alone(subject: Subject) -> None:
    lost = replace(subject.lora, name="lost", path=Path("lost.safetensors"), sha256="0" * 64)
    events = ends(subject.backend.render([subject.request(), subject.request(lora=lost), subject.request(seed=8)]))
    assert [type(event) for event in events] == [Rendered, Failed, Rendered]
    failed = events[1]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, KleinLabError)
    assert "lost" in str(failed.error)


def test_nothing_asked_is_nothing_rendered(subject: Subject) -> None:
    assert list(subject.backend.render([])) == []


def test_cancelled_before_it_began(subject: Subject) -> None:
    cancel = threading.Event()
    cancel.set()
    events = ends(subject.backend.render([subject.request()] * 3, cancel=cancel))
    assert [event.index for event in events] == [0, 1, 2]
    assert {type(event.error) for event in events if isinstance(event, Failed)} == {Cancelled}


def test_cancelled_on_its_way_every_request_still_ends_once(subject: Subject) -> None:
    cancel = threading.Event()
    requests = [subject.request(seed=seed) for seed in range(40)]
    events = []
    for event in subject.backend.render(requests, cancel=cancel):
        cancel.set()
        if not isinstance(event, Progress):
            events.append(event)
    assert sorted(event.index for event in events) == list(range(40))
    stopped = [event.error for event in events if isinstance(event, Failed)]
    assert stopped
    assert {type(error) for error in stopped} == {Cancelled}
    assert len(pixels(subject.backend, [subject.request()])) == 1


def test_closing_the_iterator_early_cancels_the_rest(subject: Subject) -> None:
    events = subject.backend.render([subject.request(seed=seed) for seed in range(40)])
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert len(pixels(subject.backend, [subject.request()])) == 1


def test_callers_at_the_same_time_get_their_own_images(subject: Subject) -> None:
    requests = [[subject.request(seed=10 * caller + n) for n in range(3)] for caller in range(3)]
    alone = [pixels(subject.backend, own) for own in requests]
    found: dict[int, np.ndarray] = {}

    def call(caller: int) -> None:
        found[caller] = pixels(subject.backend, requests[caller])

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert difference(np.stack([found[caller] for caller in range(3)]), np.stack(alone)) <= SAME


def test_models_say_what_runs_and_which_checkpoint_it_is(subject: Subject) -> None:
    statuses = subject.backend.models()
    known = [(status.weights, status.precision) for status in statuses]
    assert len(set(known)) == len(known)
    for status in statuses:
        assert bool(status.reason) != status.available
        assert bool(status.digest) >= status.available
        assert subject.backend.status(status.weights, status.precision) == status
    defaults = {weights: subject.backend.status(weights, None) for weights in {status.weights for status in statuses}}
    assert all(next(each for each in statuses if each.weights == name) == found for name, found in defaults.items())
    with pytest.raises((Unavailable, NotFound), match="klein-42b"):
        subject.backend.status("klein-42b", None)
    assert find_status(subject.backend, "pocket", None).available


def test_after_close_nothing_is_rendered(subject: Subject) -> None:
    backend = subject.again()
    assert backend.models()
    backend.close()
    backend.close()
    other = subject.again()
    assert len(pixels(other, [subject.request()])) == 1
    other.close()
    with pytest.raises(Unavailable, match="closed"):
        list(other.render([subject.request()]))


def test_a_remote_pocket_gives_the_pixels_of_the_local_one(local_backend: LocalBackend, tmp_path: Path) -> None:
    style = find_lora("style")
    asked = [("pocket", None, "0"), ("pocket", style, "0"), ("pocket", style, "0.7"), ("pocket-base", style, "1.2")]
    with (
        run_server(local_backend, tmp_path) as server,
        contextlib.closing(RemoteBackend(server.url, None, pace=QUICK)) as remote,
    ):
        for weights, lora, strength in asked:
            request = make_request(
                find_status(local_backend, weights), prompt="a red cat", lora=lora, strength=Decimal(strength),
                seed=2**32 - 1, width=64, height=80,
            )  # fmt: skip
            # One at a time: in batches of one size every pixel is the same.
            assert difference(pixels(remote, [request]), pixels(local_backend, [request])) == 0
