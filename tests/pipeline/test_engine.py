"""The queue: grouping, cancelling, and errors that reach the one request that caused them."""

import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import KLEIN_4B, POCKET, find_weights
from lora_runtime.errors import Cancelled, LoraMismatch, OutOfMemory, RenderFailed, Unavailable
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline import engine as engine_module
from lora_runtime.pipeline.batch import Model
from lora_runtime.pipeline.engine import Engine
from lora_runtime.pipeline.host import load_model
from lora_runtime.values import Failed, Progress, Rendered, RenderEvent, RenderRequest
from tests.lora_files import make_adapter, write_bfl
from tests.pocket_model import psnr, request


def ended(events: list[RenderEvent]) -> dict[int, Rendered | Failed]:
    return {event.index: event for event in events if not isinstance(event, Progress)}


def test_compatible_requests_share_a_batch_and_others_do_not(local_backend: LocalBackend) -> None:
    events = list(
        local_backend.render([request(seed=1), request(seed=2), request(seed=3, width=80), request(seed=4, steps=2)])
    )
    sizes = {index: event.timing.batch_size for index, event in ended(events).items() if isinstance(event, Rendered)}
    assert sizes == {0: 2, 1: 2, 2: 1, 3: 1}
    steps = [(event.indices, event.step) for event in events if isinstance(event, Progress) and event.steps == 4]
    assert ((0, 1), 0) in steps, "a batch says that it begins"
    assert ((0, 1), 1) in steps
    assert ((0, 1), 4) in steps


def test_callers_whose_images_ended_together_share_the_next_batch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "COME_BACK", (10_000.0, 300.0))
    loading, load_now = threading.Event(), threading.Event()

    def load(wanted: RenderRequest) -> Model:
        loading.set()
        load_now.wait()
        return load_model(find_weights(wanted.weights), wanted.precision)

    def render_one(seed: int, width: int = 64) -> int:
        (last,) = ended(list(engine.render([request(seed=seed, width=width)]))).values()
        assert isinstance(last, Rendered)
        return last.timing.batch_size

    with closing(Engine(load)) as engine, ThreadPoolExecutor() as pool:
        busy = pool.submit(render_one, 0, 80)
        loading.wait()
        together = [pool.submit(render_one, seed) for seed in (1, 2)]
        while len(engine._queue) < 2:
            time.sleep(0.01)
        load_now.set()
        assert [call.result() for call in (busy, *together)] == [1, 2, 2]
        first = pool.submit(render_one, 3)
        while not (engine._queue or first.done()):
            time.sleep(0.01)
        assert [pool.submit(render_one, 4).result(), first.result()] == [2, 2]


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
        # Which callers share a batch is a matter of timing, and another batch size may round another way.
        assert psnr(np.asarray(first.image), np.asarray(alone.image)) >= 45


@pytest.fixture
def own_backend() -> Iterator[LocalBackend]:
    """A backend whose model a test may disturb."""
    backend = LocalBackend()
    yield backend
    backend.close()


def transformer_of(backend: LocalBackend) -> torch.nn.Module:
    assert isinstance(ended(list(backend.render([request()])))[0], Rendered)
    (model,) = backend._engine._models.values()
    return model.pipeline.transformer  # type: ignore[no-any-return]


def test_a_failing_batch_is_split_until_the_failure_stands_alone(
    own_backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, batches = engine_module.render_batch, []

    def render_batch(model: object, requests: list[object], **kwargs: object) -> object:
        batches.append(len(requests))
        if any(item.seed == 3 for item in requests):  # type: ignore[attr-defined]
            raise RuntimeError("boom")
        return real(model, requests, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(engine_module, "render_batch", render_batch)
    results = ended(list(own_backend.render([request(seed=seed) for seed in range(4)])))
    assert batches == [4, 2, 2, 1, 1]
    failed = results.pop(3)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, RenderFailed)
    assert "boom" in str(failed.error)
    assert all(isinstance(result, Rendered) for result in results.values())


@pytest.mark.parametrize("message", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory"])
def test_a_batch_that_runs_out_of_memory_is_split_and_stays_small(own_backend: LocalBackend, message: str) -> None:
    error = torch.OutOfMemoryError if message.startswith("CUDA") else RuntimeError
    rows: list[int] = []
    held: list[weakref.ref[torch.Tensor]] = []

    def fail_over_two(_module: object, _args: object, arguments: dict[str, torch.Tensor]) -> None:
        rows.append(len(arguments["hidden_states"]))
        if rows[-1] > 2:
            held.append(weakref.ref(arguments["hidden_states"]))
            raise error(message)
        assert not any(reference() is not None for reference in held), "the failed batch still holds its memory"

    transformer_of(own_backend).register_forward_pre_hook(fail_over_two, with_kwargs=True)
    results = ended(list(own_backend.render([request(seed=seed) for seed in range(8)])))
    assert rows == [8, 4, *[2] * 8, 4, *[2] * 8]
    assert [type(results[index]) for index in range(8)] == [Rendered] * 8
    rows.clear()
    results = ended(list(own_backend.render([request(seed=seed) for seed in range(4)])))
    assert rows[0] == 3, "one row more is tried, and no more than one"
    assert [type(results[index]) for index in range(4)] == [Rendered] * 4


def test_what_does_not_fit_even_alone_fails_alone(own_backend: LocalBackend) -> None:
    def fail_when_wide(_module: object, _args: object, arguments: dict[str, torch.Tensor]) -> None:
        if arguments["hidden_states"].shape[1] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")

    transformer_of(own_backend).register_forward_pre_hook(fail_when_wide, with_kwargs=True)
    results = ended(list(own_backend.render([request(), request(width=128, height=128), request(seed=8)])))
    failed = results.pop(1)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, OutOfMemory)
    assert "128 x 128 px at bf16 does not fit into the device's memory, even alone" in str(failed.error)
    assert all(isinstance(result, Rendered) for result in results.values())


def test_models_leave_when_a_new_one_would_not_fit_beside_them() -> None:
    loaded: list[str] = []

    def load(wanted: RenderRequest) -> Model:
        loaded.append(wanted.weights)
        return load_model(find_weights(wanted.weights), wanted.precision)

    engine = Engine(load, fits=lambda wanted: wanted.weights != "pocket-base", models_kept=2)
    for weights, guidance in (("pocket", 1.0), ("pocket-base", 5.0), ("pocket-base", 5.0), ("pocket", 1.0)):
        (result,) = ended(list(engine.render([request(weights=weights, steps=1, guidance=guidance)]))).values()
        assert isinstance(result, Rendered)
    engine.close()
    assert loaded == ["pocket", "pocket-base", "pocket"]


def test_a_closed_engine_says_so() -> None:
    backend = LocalBackend()
    assert [type(event) for event in backend.render([request()])][-1] is Rendered
    backend.close()
    with pytest.raises(Unavailable, match="closed"):
        list(backend.render([request()]))
