"""One request on its way to a server and back: submit, poll the URL that was returned, download the image at once.

A request is sent again only where no task can exist yet: nobody was reached, or the server says that it is too busy
(429, 503). From then on the task is paid for: polling and download go on through every passing fault until the time is
up, and an error says that the task exists.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial

from PIL import Image

from lora_runtime.backends.bfl import (
    Malformed,
    Ready,
    Submitted,
    find_endpoint,
    make_body,
    read_error,
    read_image,
    read_poll,
    read_retry_after,
    read_submitted,
)
from lora_runtime.backends.bfl_words import FINETUNE_ID, Status
from lora_runtime.backends.remote_finetunes import RemoteFinetunes
from lora_runtime.backends.remote_http import Answer, BrokenOff, Http, NotSent
from lora_runtime.catalogue import Endpoint
from lora_runtime.errors import Cancelled, KleinLabError, RemoteFailed, TooManyTasks
from lora_runtime.values import Rendered, RenderRequest, Timing

_TRY_AGAIN = (429, 500, 502, 503, 504)
_EXPIRED = (401, 403, 404, 410)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long to wait, in seconds: each wait is longer than the one before, up to the longest, and a little random.

    `tries` is how often something is tried that a longer wait does not mend. `timeout_s` is for one image, from the
    request to the whole picture.
    """

    first_poll_s: float = 0.5
    longest_poll_s: float = 5.0
    first_retry_s: float = 1.0
    longest_retry_s: float = 30.0
    tries: int = 5
    timeout_s: float = 300.0

    def polls(self) -> Iterator[float]:
        """Return the waits before each poll."""
        return _grow(self.first_poll_s, self.longest_poll_s, 1.3)

    def retries(self) -> Iterator[float]:
        """Return the waits before each further try."""
        return _grow(self.first_retry_s, self.longest_retry_s, 2.0)


class RemoteTask:
    """One request. It knows how far it is, so that it can say what is lost when it ends early.

    `report` is told the progress, 0 to 1, when it is known to have grown.
    """

    def __init__(
        self,
        request: RenderRequest,
        finetunes: RemoteFinetunes,
        *,
        http: Http,
        pace: Pace,
        report: Callable[[float], None],
    ) -> None:
        self._request = request
        self._finetunes = finetunes
        self._finetune_id: str | None = None
        self._http = http
        self._pace = pace
        self._report = report
        self._sent = False
        self._submitted: Submitted | None = None
        self._status: str = Status.PENDING
        self._fault: KleinLabError | None = None
        """The last passing fault: the reason, when the time runs out over it."""

    async def run(self, index: int, waited_s: float) -> Rendered:
        """Render the request, which is the `index`th of its caller's and has waited its turn for `waited_s`.

        Raises:
            KleinLabError: It ended without an image.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        endpoint = find_endpoint(self._request)
        try:
            async with asyncio.timeout(self._pace.timeout_s):
                if self._request.lora is not None:
                    self._finetune_id = await self._finetunes.ask_id(self._request.lora, endpoint)
                body = await asyncio.to_thread(make_body, self._request, self._finetune_id)
                submitted = await self._submit(endpoint, body)
                ready, image = await self._fetch(submitted)
        except TimeoutError as error:
            raise self._out_of_time() from error
        except asyncio.CancelledError as error:
            if not self._sent:
                raise
            raise Cancelled(f"Stopped before it was rendered. {self._whereabouts()}") from error
        took = clock() - began
        seconds = min(ready.seconds, took) if ready.seconds is not None and ready.seconds > 0 else took
        return Rendered(
            index=index,
            image=image,
            timing=Timing(seconds=seconds, batch_size=1, waited_seconds=waited_s + took - seconds),
            cost=ready.cost if ready.cost is not None else submitted.cost,
            request_id=submitted.task_id,
            provenance=self._provenance(endpoint, submitted, ready),
        )

    async def _submit(self, endpoint: Endpoint, body: bytes) -> Submitted:
        """Send the request, again only while no task can exist."""
        waits = self._pace.retries()
        faults = 0
        while True:
            retry_after = None
            try:
                self._sent = True
                answer = await self._http.post(endpoint.path, body)
            except NotSent as error:
                self._sent = False
                self._fault = error
                faults += 1
            except BrokenOff as error:
                raise RemoteFailed(
                    f"{error} The request may have arrived: it was not sent again, and the task may exist and be "
                    "billed."
                ) from error
            else:
                if answer.status == 200:
                    self._submitted = read_submitted(answer.body)
                    self._report(0.0)
                    return self._submitted
                self._sent = answer.status >= 500 and answer.status != 503
                self._fault = self._read_error(answer)
                if self._sent:
                    raise RemoteFailed(f"{self._fault} The task may exist and be billed: it was not sent again.")
                if answer.status not in (429, 503):
                    raise self._fault
                retry_after = read_retry_after(answer.retry_after, answer.body)
                faults += answer.status == 503
            if faults >= self._pace.tries or (retry_after or 0.0) > self._pace.timeout_s:
                raise self._fault
            await _sleep(next(waits), retry_after)

    async def _fetch(self, submitted: Submitted) -> tuple[Ready, Image.Image]:
        """Wait for the result and download it; a link that has expired is asked for once more."""
        ready = await self._wait(submitted)
        answer = await self._patiently(partial(self._http.download, ready.sample))
        if answer.status in _EXPIRED:
            ready = await self._wait(submitted)
            answer = await self._patiently(partial(self._http.download, ready.sample))
        if answer.status != 200:
            raise RemoteFailed(
                f"The image of task {submitted.task_id} could not be downloaded: its link answers {answer.status}. "
                "Links expire ten minutes after the render. Render it again."
            )
        if ready.seed is not None and ready.seed != self._request.seed:
            raise RemoteFailed(
                f"Task {submitted.task_id} was rendered with seed {ready.seed} instead of {self._request.seed}. "
                "Choose a seed below 2^32."
            )
        return ready, await asyncio.to_thread(read_image, answer.body, self._request)

    async def _wait(self, submitted: Submitted) -> Ready:
        """Poll until the task has ended."""
        waits = self._pace.polls()
        strange = 0
        while True:
            await _sleep(next(waits))
            answer = await self._patiently(partial(self._http.poll, submitted.polling_url))
            try:
                found = read_poll(answer.status, answer.body)
            except Malformed as error:
                self._fault = error if answer.status == 200 else self._read_error(answer)
                strange += 1
                # A task may not be visible at once on every machine over there (404).
                if answer.status not in (200, 404) or strange >= self._pace.tries:
                    raise type(self._fault)(f"{self._fault} {self._whereabouts()}") from error
                continue
            if isinstance(found, Ready):
                return found
            strange = 0
            self._fault = None
            self._status = found.status
            self._report(found.progress or 0.0)

    async def _patiently(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Ask until there is an answer that another try would not change."""
        waits = self._pace.retries()
        while True:
            retry_after = None
            try:
                answer = await ask()
            except (NotSent, BrokenOff) as error:
                self._fault = error
            else:
                if answer.status not in _TRY_AGAIN:
                    return answer
                self._fault = self._read_error(answer)
                retry_after = read_retry_after(answer.retry_after, answer.body)
            await _sleep(next(waits), retry_after)

    def _read_error(self, answer: Answer) -> KleinLabError:
        return read_error(answer.status, answer.body, retry_after=answer.retry_after, where=self._http.origin)

    def _out_of_time(self) -> KleinLabError:
        why = str(self._fault or ("" if self._sent else f"{self._http.origin} was not reached."))
        known = self._whereabouts() if self._sent else ""
        said = " ".join(filter(None, (f"No image after {self._pace.timeout_s:g} s.", why, known)))
        if self._submitted is None and isinstance(self._fault, TooManyTasks):
            return TooManyTasks(said, retry_after_s=self._fault.retry_after_s)
        return RemoteFailed(said)

    def _whereabouts(self) -> str:
        """What is known of the task that was sent."""
        if self._submitted is None:
            return f"The request was on its way to {self._http.origin}: the task may exist and be billed."
        return (
            f"Task {self._submitted.task_id} at {self._http.origin} (last seen: {self._status}) goes on there and may "
            "be billed."
        )

    def _provenance(self, endpoint: Endpoint, submitted: Submitted, ready: Ready) -> dict[str, str]:
        """Where the image comes from; what the server did not say is left out."""
        facts = {
            "backend": "remote",
            "origin": self._http.origin,
            "endpoint": endpoint.name,
            "precision": endpoint.precision or "the server's own",
            FINETUNE_ID: self._finetune_id,
            "input_mp": _exact(submitted.input_mp),
            "output_mp": _exact(submitted.output_mp),
            "prompt_used": ready.prompt if ready.prompt != self._request.prompt else None,
        }
        return {name: fact for name, fact in facts.items() if fact is not None}


async def _sleep(wait: float, retry_after: float | None = None) -> None:
    """Wait a little more or less than `wait`, and not less than the server asks."""
    await asyncio.sleep((retry_after or 0.0) + wait * random.uniform(0.8, 1.2))


def _exact(number: float | None) -> str | None:
    return None if number is None else f"{number:g}"


def _grow(first: float, longest: float, factor: float) -> Iterator[float]:
    wait = first
    while True:
        yield wait
        wait = min(wait * factor, longest)
