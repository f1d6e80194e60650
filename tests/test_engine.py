"""The queue: grouping, cancelling, and errors that reach the one request that caused them."""

import threading
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import KLEIN_4B, POCKET
from lora_runtime.errors import Cancelled, LoraMismatch, OutOfMemory, RenderFailed, Unavailable
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline import engine as engine_module
from lora_runtime.values import Failed, Progress, Rendered, RenderEvent
from tests.lora_files import make_adapter, write_bfl
from tests.test_adapters import request


def ended(events: list[RenderEvent]) -> dict[int, Rendered | Failed]:
    return {event.index: event for event in events if not isinstance(event, Progress)}


def test_compatible_requests_share_a_batch_and_others_do_not(local_backend: LocalBackend) -> None:
    events = list(
        local_backend.render([request(seed=1), request(seed=2), request(seed=3, width=80), request(seed=4, steps=2)])
    )
    sizes = {index: event.timing.batch_size for index, event in ended(events).items() if isinstance(event, Rendered)}
    assert sizes == {0: 2, 1: 2, 2: 1, 3: 1}
    steps = [(event.indices, event.step) for event in events if isinstance(event, Progress) and event.steps == 4]
    assert ((0, 1), 1) in steps
    assert ((0, 1), 4) in steps


def test_a_bad_lora_fails_its_own_cell_only(local_backend: LocalBackend, tmp_path: Path) -> None:
    wrong = find_lora(str(write_bfl(tmp_path / "wrong.safetensors", make_adapter(KLEIN_4B, rank=1))))
    right = find_lora(str(write_bfl(tmp_path / "right.safetensors", make_adapter(POCKET))))
    results = ended(list(local_backend.render([request(right, "1"), request(wrong, "1"), request()])))
    assert isinstance(results[0], Rendered)
    assert isinstance(results[2], Rendered)
    assert isinstance(results[1], Failed)
    assert isinstance(results[1].error, LoraMismatch)
    assert "Choose klein-4b" in str(results[1].error)


def test_a_strength_that_leaves_the_number_range_fails_alone(local_backend: LocalBackend, tmp_path: Path) -> None:
    lora = find_lora(str(write_bfl(tmp_path / "a.safetensors", make_adapter(POCKET))))
    huge = replace(request(lora), strength=Decimal("1e39"))
    results = ended(list(local_backend.render([request(lora, "1"), huge])))
    assert isinstance(results[0], Rendered)
    assert isinstance(results[1], Failed)
    assert isinstance(results[1].error, RenderFailed)


def test_unknown_weights_on_this_machine(local_backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (event,) = local_backend.render([request(weights="klein-9b")])
    assert isinstance(event, Failed)
    assert isinstance(event.error, Unavailable)
    assert "hf download" in str(event.error)


def test_cancel_ends_what_is_left_and_keeps_what_is_done(local_backend: LocalBackend) -> None:
    cancel = threading.Event()
    requests = [request(seed=1), request(seed=2, width=80, steps=50), request(seed=3, width=96)]
    results: dict[int, Rendered | Failed] = {}
    for event in local_backend.render(requests, cancel=cancel):
        if isinstance(event, Progress):
            if event.indices == (1,):
                cancel.set()
        else:
            results[event.index] = event
    assert isinstance(results[0], Rendered)
    for index in (1, 2):
        result = results[index]
        assert isinstance(result, Failed)
        assert isinstance(result.error, Cancelled)


def test_closing_the_iterator_frees_the_engine(local_backend: LocalBackend) -> None:
    events = local_backend.render([request(steps=50, width=112)])
    assert isinstance(next(events), Progress)
    events.close()  # type: ignore[attr-defined]
    (event,) = [event for event in local_backend.render([request()]) if not isinstance(event, Progress)]
    assert isinstance(event, Rendered)


def test_two_callers_each_get_their_own(local_backend: LocalBackend) -> None:
    results: dict[int, list[RenderEvent]] = {}

    def call(seed: int) -> None:
        results[seed] = list(local_backend.render([request(seed=seed), request(seed=seed + 100)]))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, events in results.items():
        (alone,) = ended(list(local_backend.render([request(seed=seed)]))).values()
        first = ended(events)[0]
        assert isinstance(first, Rendered)
        assert isinstance(alone, Rendered)
        assert first.image.tobytes() == alone.image.tobytes()


@pytest.mark.parametrize(
    ("error", "expected"), [(torch.OutOfMemoryError("full"), OutOfMemory), (RuntimeError("boom"), RenderFailed)]
)
def test_a_failing_batch_is_split_until_the_failure_stands_alone(
    local_backend: LocalBackend, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]
) -> None:
    real, batches = engine_module.render_batch, []

    def render_batch(model: object, requests: list[object], **kwargs: object) -> object:
        batches.append(len(requests))
        if any(item.seed == 3 for item in requests):  # type: ignore[attr-defined]
            raise error
        return real(model, requests, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(engine_module, "render_batch", render_batch)
    results = ended(list(local_backend.render([request(seed=seed) for seed in range(4)])))
    assert batches == [4, 2, 2, 1, 1]
    failed = results.pop(3)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, expected)
    assert all(isinstance(result, Rendered) for result in results.values())


def test_a_closed_engine_says_so() -> None:
    backend = LocalBackend()
    assert [type(event) for event in backend.render([request()])][-1] is Rendered
    backend.close()
    with pytest.raises(Unavailable, match="closed"):
        list(backend.render([request()]))
