"""The one owner of a device: a queue, and a thread that renders compatible requests together.

The thread takes the oldest request, gathers those that can share its batch (from any caller, with any LoRA, strength,
prompt and seed), renders them and hands each image back to whoever asked. A sweep needs no code of its own here: its
cells share a batch because they are compatible.

Callers whose images ended together come back one after the other: a batch begun with the first would leave the rest to
the next one, and so on for ever. So after a batch of several calls the thread waits a moment for as many (`COME_BACK`).

A failing batch is split until the failure stands alone, so an error reaches the one request that caused it. A batch
that ran out of memory is split too; batches of its kind stay that small, and grow by one with each that succeeds.
"""

import gc
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from queue import SimpleQueue
from typing import Final

import torch

from lora_runtime.batches import Job, batch_key
from lora_runtime.errors import Cancelled, KleinLabError, OutOfMemory, RenderFailed, Unavailable
from lora_runtime.events import read_events
from lora_runtime.pipeline.batch import Model, render_batch
from lora_runtime.pipeline.memory import largest_batch
from lora_runtime.pipeline.precision import describe_precision
from lora_runtime.values import Failed, Progress, Rendered, RenderEvent, RenderRequest, Timing

logger = logging.getLogger(__name__)

COME_BACK: Final = (0.25, 0.15)
"""How long the callers of a batch are waited for: this share of the time it took, and never more seconds."""

CROWD: Final = 4
"""More calls than these in a batch come from callers of the API, whose polls need a processor of the CPU's.

In a tug-of-war for the last one, every layer would wait for its last thread.
"""


class _Stopped(Exception):  # nobody waits for this batch any more
    pass


class Engine:
    """Renders for any number of callers. `load` builds the model of a request; it runs in the engine's thread.

    At most `models_kept` models stay loaded, and only as long as a new one `fits` beside them.
    """

    def __init__(
        self,
        load: Callable[[RenderRequest], Model],
        *,
        fits: Callable[[RenderRequest], bool] = lambda _request: True,
        models_kept: int = 2,
    ) -> None:
        self._load = load
        self._fits = fits
        self._limits: dict[Hashable, int] = {}
        """Batch key -> how many rows were found to fit, where the estimate was too high."""
        self._models: OrderedDict[Hashable, Model] = OrderedDict()
        self._models_kept = models_kept
        self._queue: list[Job] = []
        self._changed = threading.Condition()
        self._calls_back, self._wait_until = 0, 0.0
        """As many calls as the last batch had are waited for, until then."""
        self._closed = False
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._work, name="klein-engine", daemon=True)
        self._thread.start()

    def render(
        self, requests: Sequence[RenderRequest], *, cancel: threading.Event | None = None
    ) -> Iterator[RenderEvent]:
        """See `Backend.render`."""
        stop = threading.Event()  # ours: set when the caller closes this iterator
        events: SimpleQueue[RenderEvent | Exception] = SimpleQueue()
        jobs = [Job(index=index, request=request, events=events, cancel=stop) for index, request in enumerate(requests)]
        with self._changed:
            if self._closed:
                raise Unavailable("The engine is closed. Start the app again.")
            self._queue += jobs
            self._changed.notify()

        def end() -> None:
            stop.set()
            self._drop_queued(jobs)

        yield from read_events(events, len(jobs), cancel=cancel, stop=end)

    def close(self) -> None:
        """End the thread after the step under way; whoever still waits gets `Cancelled`."""
        with self._changed:
            self._closed = True
            for job in self._queue:
                job.cancel.set()
            self._changed.notify()
        self._thread.join()

    def _drop_queued(self, jobs: Sequence[Job]) -> None:
        own = set(jobs)
        with self._changed:
            self._queue = [job for job in self._queue if not (job in own and job.drop_if_cancelled())]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                self._wait_for_calls()
                if self._closed:
                    for job in self._queue:
                        job.drop_if_cancelled()
                    return
                jobs = self._take()
            self._run(jobs)

    def _wait_for_calls(self) -> None:
        """Let those whose images have just ended come back, so that they share a batch again."""
        left_s = self._wait_until - time.perf_counter()
        if left_s > 0:
            self._changed.wait_for(
                lambda: self._closed or _count_calls(self._queue) >= self._calls_back, timeout=left_s
            )

    def _take(self) -> list[Job]:
        """Remove and return the oldest request's batch, as far as it is known before the model is loaded."""
        self._queue = [job for job in self._queue if not job.drop_if_cancelled()]
        if not self._queue:
            return []
        key = batch_key(self._queue[0].request)
        jobs = [job for job in self._queue if batch_key(job.request) == key]
        self._queue = [job for job in self._queue if batch_key(job.request) != key]
        return jobs

    def _run(self, jobs: list[Job]) -> None:
        """Render jobs that share a batch key; put back what exceeds the largest batch."""
        if not jobs:
            return
        try:
            model = self._model(jobs[0].request)
        except Exception as error:  # noqa: BLE001 - the thread must live, and the callers must hear of it
            _fail(jobs, error)
            return
        request = jobs[0].request
        size = largest_batch(model.weights, request.width, request.height, model.device, request.references)
        size = min(size, self._limits.get(batch_key(request), size))
        with self._changed:
            self._queue = jobs[size:] + self._queue
        _report_step(jobs[:size], 0, request.steps)
        batch = [job for job in jobs[:size] if _attach(model, job)]
        if model.device.type == "cpu":
            torch.set_num_threads(max(1, self._threads - (_count_calls(batch) > CROWD)))
        started = time.perf_counter()
        self._render(model, batch)
        ended, (share, most_s) = time.perf_counter(), COME_BACK
        self._calls_back = _count_calls(batch)
        self._wait_until = ended + min(share * (ended - started), most_s) if self._calls_back > 1 else ended
        model.adapters.shrink()

    def _render(self, model: Model, jobs: list[Job]) -> None:
        """Render `jobs` in one batch; on failure, halves, then single jobs."""
        jobs = [job for job in jobs if not job.drop_if_cancelled()]
        if not jobs:
            return
        started = time.perf_counter()
        provenance = _provenance(model)
        failure: Exception | None = None

        def on_step(step: int, steps: int) -> None:
            waiting = [job for job in jobs if not job.drop_if_cancelled()]
            if not waiting or self._closed:
                raise _Stopped
            _report_step(waiting, step, steps)

        try:
            results = render_batch(model, [job.request for job in jobs], on_step=on_step)
            for job, result in zip(jobs, results, strict=True):
                if isinstance(result, KleinLabError):
                    job.end(Failed(index=job.index, error=result))
                    continue
                share = (time.perf_counter() - started) / len(jobs)
                timing = Timing(seconds=share, batch_size=len(jobs), waited_seconds=started - job.queued_at)
                job.end(Rendered(index=job.index, image=result, timing=timing, provenance=provenance))
        except _Stopped:
            _fail(jobs, Cancelled("Stopped before it was rendered."))
        except Exception as error:  # noqa: BLE001 - as above
            # The frames of a traceback hold the tensors of the batch; without memory those have to go.
            failure = error.with_traceback(None) if _is_out_of_memory(error) else error
        key = batch_key(jobs[0].request)
        if failure is None:
            if len(jobs) == self._limits.get(key):
                self._limits[key] += 1  # what took the memory may have gone
            return
        if _is_out_of_memory(failure):
            self._limits[key] = max(1, len(jobs) // 2)
            _release_memory()
        left = [job for job in jobs if not job.ended]
        if len(left) <= 1:
            _fail(left, failure)
            return
        logger.warning("A batch of %d failed (%s); trying its halves.", len(left), failure)
        self._render(model, left[: len(left) // 2])
        self._render(model, left[len(left) // 2 :])

    def _model(self, request: RenderRequest) -> Model:
        key = (request.weights, request.precision)
        if key not in self._models:
            while self._models and (len(self._models) >= self._models_kept or not self._fits(request)):
                self._models.popitem(last=False)
                _release_memory()
            self._models[key] = self._load(request)
        self._models.move_to_end(key)
        return self._models[key]


def _count_calls(jobs: Sequence[Job]) -> int:
    return len({id(job.events) for job in jobs})


def _attach(model: Model, job: Job) -> bool:
    """Attach the job's LoRA; a LoRA that does not load fails its own jobs only."""
    if job.request.lora is None:
        return True
    try:
        model.adapters.attach(job.request.lora)
    except Exception as error:  # noqa: BLE001 - as in Engine._run
        _fail([job], error)
        return False
    return True


def _fail(jobs: Sequence[Job], error: Exception) -> None:
    for job in jobs:
        job.end(Failed(index=job.index, error=_translate(error, job.request)))


def _translate(error: Exception, request: RenderRequest) -> KleinLabError:
    """Turn torch's and diffusers' exceptions into ours."""
    if isinstance(error, KleinLabError):
        return error
    if _is_out_of_memory(error):
        fewer = " or fewer reference images" if request.references else ""
        translated: KleinLabError = OutOfMemory(
            f"{request.width} x {request.height} px at {request.precision} does not fit into the device's memory, even "
            f"alone. Choose a smaller size{fewer}."
        )
    else:
        logger.error("Rendering failed", exc_info=error)
        translated = RenderFailed(f"The model failed on this image: {type(error).__name__}: {error}")
    translated.__cause__ = error
    return translated


def _is_out_of_memory(error: Exception) -> bool:
    """torch has an error of its own for GPUs; its CPU allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _release_memory() -> None:
    """Hand back what nobody refers to any more, so that the next try finds it free."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _report_step(jobs: Sequence[Job], step: int, steps: int) -> None:
    """Tell every caller once how far its own requests are."""
    callers: dict[int, list[Job]] = {}
    for job in jobs:
        callers.setdefault(id(job.events), []).append(job)
    for own in callers.values():
        own[0].events.put(Progress(indices=tuple(job.index for job in own), step=step, steps=steps))


def _provenance(model: Model) -> dict[str, str]:
    import diffusers

    return {
        "backend": "local",
        "device": str(model.device),
        "arithmetic": describe_precision(model.precision, model.device),
        "attention": model.attention,
        "compiled": "yes" if model.compiled else "no",
        "memory": model.placement.reason if model.placement else "not planned",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
