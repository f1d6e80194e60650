"""What the routes stand on: accounts, finetunes, the queue and its workers, wired together around one backend."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from lora_runtime.backends.base import Backend
from lora_runtime.backends.bfl_words import DEFAULT_FORMAT
from lora_runtime.catalogue import Endpoint, Weights, find_weights
from lora_runtime.errors import InvalidInput, Unavailable, WrongEndpoint
from lora_runtime.registry.accounts import LOCAL, MEGAPIXEL, Accounts, parse_keys, price, to_credits
from lora_runtime.registry.finetune import Finetune
from lora_runtime.registry.local import open_finetunes
from lora_runtime.requests import find_status, fold_seed, make_request
from lora_runtime.server.access import ResultUrls
from lora_runtime.server.images import count_billed_px, keep_reference, read_input_image
from lora_runtime.server.outbound import Outbound
from lora_runtime.server.tasks import NewTask, Tasks
from lora_runtime.server.webhooks import Deliveries, Webhooks
from lora_runtime.server.wire import Flux2KleinFinetunedInputs, Flux2KleinInputs, InvalidField, round_side
from lora_runtime.server.workers import Workers
from lora_runtime.settings import Settings
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from lora_runtime.values import ModelStatus, Reference

STATUS_KEPT_S: Final = 1.0
"""How long an endpoint is believed to run here: its files are looked at once for all who submit at a time."""


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A task that was accepted, what it will cost, and its megapixels to two decimals."""

    task_id: str
    cost: Decimal
    input_mp: float
    output_mp: float


class Service:
    """The server without HTTP. It renders between `start` and `close`; what it accepted before is done first."""

    def __init__(self, *, backend: Backend, database: Database, blobs: Blobs, settings: Settings) -> None:
        self.backend = backend
        self.blobs = blobs
        self.settings = settings
        self.database = database
        self.accounts = Accounts(database, fixed=_read_keys(settings))
        self.accounts.add_organization(LOCAL)
        self.finetunes = open_finetunes(database, blobs, settings)
        self.tasks = Tasks(database, max_active=settings.max_active_tasks)
        self.outbound = Outbound(allow_private=settings.allow_private_networks)
        self.urls = ResultUrls(self.accounts.read_secret("results"))
        self.deliveries = Deliveries(database)
        self.webhooks = Webhooks(self.deliveries, self.tasks, self.urls, self.outbound)
        self._statuses: dict[str, tuple[float, ModelStatus]] = {}
        self.workers = Workers(
            backend, self.tasks, self.finetunes, blobs, count=settings.workers, on_end=self.webhooks.wake
        )

    @property
    def is_off(self) -> bool:
        """Whether nobody is answered over HTTP: on a Space without keys, where everybody could ask."""
        return self.settings.on_space and not self.accounts.has_keys()

    def start(self) -> None:
        """Begin to render what waits."""
        self.workers.start()
        self.webhooks.start()

    def close(self) -> None:
        """Stop rendering; nothing is lost. The backend stays open: it is the caller's."""
        self.workers.close()
        self.webhooks.close()
        self.outbound.close()

    def submit(self, organization: str, endpoint: Endpoint, body: Flux2KleinInputs, *, base_url: str) -> Accepted:
        """Check a request and queue it.

        Raises:
            NotFound, WrongEndpoint: There is no such finetune, or it belongs to another endpoint.
            InvalidInput: A field does not fit this endpoint.
            Unavailable: The weights cannot run here.
            TooManyTasks, OutOfCredits: Not now.
        """
        finetune = None
        if isinstance(body, Flux2KleinFinetunedInputs):
            finetune = self._find_finetune(organization, body.finetune_id, endpoint)
        weights, status = find_weights(endpoint.weights), self.find_status(endpoint)
        if body.input_images:  # work that is not done for a task which is refused
            self.tasks.require_room(organization)
        if body.webhook_url is not None:
            with _naming("webhook_url"):
                self.outbound.require_reachable(body.webhook_url)
        references = self._take_images(body.input_images)
        request = make_request(
            status,
            prompt=body.prompt,
            lora=finetune.lora if finetune else None,
            strength=body.strength,
            seed=fold_seed(body.seed),
            width=_side("width", body.width, weights),
            height=_side("height", body.height, weights),
            references=references,
        )
        output_px = request.width * request.height
        input_px = sum(map(count_billed_px, references))
        new = NewTask(
            organization=organization,
            endpoint=endpoint.name,
            request=request,
            millicredits=price(endpoint, output_px=output_px, input_px=input_px),
            output_format=body.output_format or DEFAULT_FORMAT,
            base_url=base_url,
            finetune=finetune.id if finetune else None,
            lora_blob=finetune.blob if finetune else None,
            webhook_url=body.webhook_url,
            webhook_secret=body.webhook_secret,
        )
        task_id = self.tasks.submit(new)
        self.workers.wake()
        return Accepted(
            task_id=task_id,
            cost=to_credits(new.millicredits),
            input_mp=round(input_px / MEGAPIXEL, 2),
            output_mp=round(output_px / MEGAPIXEL, 2),
        )

    def _find_finetune(self, organization: str, finetune_id: str, endpoint: Endpoint) -> Finetune:
        """The finetune, which must have been registered for exactly this endpoint."""
        found = self.finetunes.find(organization, finetune_id)
        if found.endpoint != endpoint:
            at = f" at {found.precision.upper()}" if found.precision else ""
            raise WrongEndpoint(
                f"Finetune {finetune_id!r} was registered for {found.weights}{at}, which is not what {endpoint.name} "
                f"runs. POST it to {found.endpoint.path}."
            )
        return found

    def _take_images(self, images: Mapping[str, str]) -> list[Reference]:
        """Read, check and keep the input images; each error names its field."""
        references = []
        for field, image in images.items():
            with _naming(field):
                references.append(keep_reference(read_input_image(image, field, self.outbound), self.blobs))
        return references

    def find_status(self, endpoint: Endpoint) -> ModelStatus:
        """What the endpoint runs here, as seen within `STATUS_KEPT_S`; never queue what cannot be rendered.

        Raises:
            Unavailable: It cannot run; the message says why.
        """
        now = time.monotonic()
        known = self._statuses.get(endpoint.name)
        if known is None or now - known[0] >= STATUS_KEPT_S:
            try:
                known = now, find_status(self.backend, endpoint.weights, endpoint.precision)
            except (Unavailable, InvalidInput) as error:
                raise Unavailable(f"{endpoint.name} cannot run on this server: {error}") from error
            self._statuses[endpoint.name] = known
        return known[1]


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Let what is wrong be said at its field."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidField(field, str(error)) from error


def _read_keys(settings: Settings) -> Mapping[str, str]:
    return parse_keys(settings.api_keys.get_secret_value()) if settings.api_keys else {}


def _side(field: str, side: int | None, weights: Weights) -> int | None:
    """Pixels as they will be rendered, or None for auto."""
    if not side:
        return None
    low, high = weights.sizes
    rounded = round_side(side)
    if rounded > high:
        raise InvalidField(field, f"{side} px is more than {weights.label} renders. Choose from {low} to {high}.")
    return max(rounded, low)
