"""The routes of the BFL API: submit, poll, results, credits and finetunes, under /v1, documented at /v1/docs.

The app mounts them; `python -m lora_runtime serve` serves them alone.

Each route says who asks, hands over to `Service`, and puts the answer into BFL's shapes. Errors are
`{"detail": "sentence"}`, but for 422, whose detail is a list as in every FastAPI application.
"""

import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Final

import uvicorn
from fastapi import Depends, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import APIKeyHeader
from starlette.concurrency import run_in_threadpool
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from lora_runtime.backends.base import Backend
from lora_runtime.backends.bfl_words import Status
from lora_runtime.catalogue import ENDPOINTS, Endpoint, find_weights
from lora_runtime.errors import KleinLabError, NotFound, TooManyTasks, Unavailable
from lora_runtime.registry.local import open_blobs
from lora_runtime.server import wire
from lora_runtime.server.access import MAX_BODY_BYTES, BodyLimit, find_caller, read_base_url
from lora_runtime.server.door import Door
from lora_runtime.server.lab import LAB_TAG, UPLOAD_PATH, add_lab_routes
from lora_runtime.server.replies import show_finetune, show_task, show_time
from lora_runtime.server.service import Service
from lora_runtime.server.statuses import refusals
from lora_runtime.settings import Settings
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database

logger = logging.getLogger(__name__)

UNMETERED_CREDITS: Final = 1_000_000.0
"""The balance that is shown to an organization without one: clients look for a positive number."""

_KEY: Final = APIKeyHeader(name="x-key", auto_error=False, description="Needed as soon as the server has keys.")

_OFF: Final = (
    "The HTTP API of this Space is off. Its owner turns it on with a secret KLEIN_LAB_API_KEYS, such as acme:KEY."
)

KEEP_ALIVE_S: Final = 75
"""How long a connection is kept between two requests: longer than callers wait between polls, or until they retry."""

MAX_MESSAGE: Final = 500
"""A longer sentence loses its middle: what is wrong stands first, what to do last."""


def build_api(*, backend: Backend, database: Database, blobs: Blobs, settings: Settings) -> FastAPI:
    """Return the API on a backend, with its workers: they run as long as the application does.

    `blobs` must not be a folder that is served to everybody. Where the application is mounted into another one, its
    start-up is not run: use `Service` and `build_routes`.
    """
    return build_routes(Service(backend=backend, database=database, blobs=blobs, settings=settings))


def build_routes(service: Service) -> FastAPI:
    """Return the API of a service; starting and closing the application starts and closes the service."""

    @contextlib.asynccontextmanager
    async def lifespan(_api: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    api = FastAPI(
        title="Klein LoRA Lab API",
        description="The FLUX.2 [klein] part of the BFL API, on this machine.",
        version="1",
        lifespan=lifespan,
        docs_url="/v1/docs",
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        openapi_tags=[
            {"name": "Models", "description": "Generation task endpoints."},
            {"name": "Utility", "description": "Results, credits and finetunes, as BFL has them."},
            {"name": LAB_TAG, "description": "Not part of the BFL API: what BFL has in its Dashboard only."},
        ],
    )
    api.add_exception_handler(KleinLabError, _answer_error)
    api.add_exception_handler(RequestValidationError, _answer_invalid)
    api.add_exception_handler(Exception, _answer_surprise)
    caller = _make_caller(service)
    _add_results(api, service)  # routes are tried in order, and these are asked for most
    for endpoint in ENDPOINTS.values():
        _add_endpoint(api, service, endpoint, caller)
    _add_account(api, service, caller)
    add_lab_routes(api, service, caller)
    api.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES, unlimited=UPLOAD_PATH)
    api.add_middleware(Door, settings=service.settings, has_keys=service.accounts.has_keys)
    api.add_middleware(Shut, service=service)
    return api


def serve(backend: Backend, settings: Settings) -> None:
    """Serve until Ctrl-C or SIGTERM. What is under way then waits in the queue for the next start.

    Raises:
        StorageFailed: The home folder or the database cannot be written.
    """
    with contextlib.closing(backend), contextlib.closing(Database(settings.sqlalchemy_url())) as database:
        api = build_api(backend=backend, database=database, blobs=open_blobs(settings), settings=settings)
        # The first question to a backend imports torch; it need not wait for the first caller.
        threading.Thread(target=backend.models, name="klein-warm-up", daemon=True).start()
        # Proxy headers are read by the API itself, which has its own mind about who is local.
        uvicorn.run(
            api,
            host=settings.host,
            port=settings.port,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            log_level="warning",
            ws="none",
        )


class Shut:
    """Answers every request with 404 as long as the API is off."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        on_space = self._service.settings.on_space
        if scope["type"] == "http" and on_space and await run_in_threadpool(lambda: self._service.is_off):
            await JSONResponse({"detail": _OFF}, 404)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def mount(api: FastAPI) -> Mount:
    """Return the API as a route of another application; its paths stay as they are, below /v1."""

    async def at_root(scope: Scope, receive: Receive, send: Send) -> None:
        await api({**scope, "root_path": scope.get("root_path", "").removesuffix("/v1")}, receive, send)

    return Mount("/v1", app=at_root)


def _make_caller(service: Service) -> Callable[..., Awaitable[str]]:
    async def caller(request: Request, key: Annotated[str | None, Security(_KEY)] = None) -> str:
        accounts = service.accounts
        if accounts.knows_keys() and not accounts.has_keys():  # nobody is asked, so no thread is needed
            return find_caller(accounts, request, key)
        return await run_in_threadpool(find_caller, accounts, request, key)

    return caller


def _add_endpoint(api: FastAPI, service: Service, endpoint: Endpoint, caller: Callable[..., Awaitable[str]]) -> None:
    """One generation endpoint. The two kinds differ in the body's type, which FastAPI reads from the signature."""

    def answer(
        request: Request, body: wire.Flux2KleinInputs, organization: str
    ) -> wire.AsyncResponse | wire.AsyncWebhookResponse:
        base_url = read_base_url(request, service.settings.public_url)
        accepted = service.submit(organization, endpoint, body, base_url=base_url)
        bill = {"cost": float(accepted.cost), "input_mp": accepted.input_mp, "output_mp": accepted.output_mp}
        if body.webhook_url is not None:
            return wire.AsyncWebhookResponse(
                id=accepted.task_id, status=Status.PENDING, webhook_url=body.webhook_url, **bill
            )
        polling_url = f"{base_url}/v1/get_result?id={accepted.task_id}"
        return wire.AsyncResponse(id=accepted.task_id, polling_url=polling_url, **bill)

    def submit_finetuned(
        request: Request, body: wire.Flux2KleinFinetunedInputs, organization: Annotated[str, Depends(caller)]
    ) -> wire.AsyncResponse | wire.AsyncWebhookResponse:
        return answer(request, body, organization)

    def submit_base(
        request: Request, body: wire.Flux2KleinInputs, organization: Annotated[str, Depends(caller)]
    ) -> wire.AsyncResponse | wire.AsyncWebhookResponse:
        return answer(request, body, organization)

    label = find_weights(endpoint.weights).label
    at = f" at {endpoint.precision.upper()}" if endpoint.precision else ""
    api.add_api_route(
        endpoint.path,
        submit_finetuned if endpoint.finetuned else submit_base,
        methods=["POST"],
        tags=["Models"],
        summary=f"Generate an image with {label}{' and a finetune' if endpoint.finetuned else ''}{at}",
        responses=refusals(402, 429, 503, body=True),
        operation_id=f"generate_{endpoint.name.replace('-', '_')}",
    )


def _add_results(api: FastAPI, service: Service) -> None:
    @api.get("/v1/get_result", responses=refusals(), tags=["Utility"], summary="Get Result")
    async def get_result(request: Request, id: wire.Text) -> wire.ResultResponse:  # noqa: A002 - the name on the wire
        """Say how far a task is. No key is needed: an id is known to whoever submitted the task."""
        task = service.tasks.recall(id) or await run_in_threadpool(service.tasks.find, id)
        if task is None:
            return wire.ResultResponse(id=id, status=Status.NOT_FOUND)
        base_url = read_base_url(request, service.settings.public_url)
        return show_task(task, service.urls, base_url, progress=service.workers.progress(task.id))

    @api.api_route("/v1/results/{task_id}/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    def download(
        task_id: str, name: str, se: Annotated[str, Query()] = "", sig: Annotated[str, Query()] = ""
    ) -> FileResponse:
        service.urls.check(task_id, name, se, sig, now=time.time())
        task = service.tasks.find(task_id)
        if task is None or task.result_blob is None:
            raise NotFound(f"The image of task {task_id} is not here any more.")
        return FileResponse(
            service.blobs.path(task.result_blob),
            media_type=f"image/{task.output_format}",
            filename=name,
            content_disposition_type="inline",
            headers={"cache-control": "private, max-age=600"},
        )


def _add_account(api: FastAPI, service: Service, caller: Callable[..., Awaitable[str]]) -> None:
    @api.get("/v1/credits", responses=refusals(), tags=["Utility"], summary="Get the user's credits")
    def get_credits(organization: Annotated[str, Depends(caller)]) -> wire.CreditsResponse:
        """Say what is left; an organization whose credits were never set has a million."""
        left = service.accounts.credits_of(organization)
        return wire.CreditsResponse(credits=UNMETERED_CREDITS if left is None else float(left))

    @api.get("/v1/my_finetunes", responses=refusals(), tags=["Utility"], summary="My Finetunes")
    def my_finetunes(organization: Annotated[str, Depends(caller)]) -> wire.MyFinetunesResponse:
        """List every finetune_id that can be used: own ones, shared ones, official ones."""
        return wire.MyFinetunesResponse(finetunes=[finetune.id for finetune in service.finetunes.list(organization)])

    @api.get("/v1/finetune_details", responses=refusals(), tags=["Utility"], summary="Finetune Details")
    def finetune_details(
        finetune_id: wire.Text, organization: Annotated[str, Depends(caller)]
    ) -> wire.FinetuneDetailResponse:
        """Describe one finetune and its file."""
        return wire.FinetuneDetailResponse(
            finetune_details=show_finetune(service.finetunes.find(organization, finetune_id))
        )

    @api.post("/v1/delete_finetune", responses=refusals(body=True), tags=["Utility"], summary="Delete Finetune")
    def delete_finetune(
        body: wire.DeleteFinetuneInputs, organization: Annotated[str, Depends(caller)]
    ) -> wire.DeleteFinetuneResponse:
        """Delete a finetune of one's own. Tasks that were accepted go on."""
        removed = service.finetunes.remove(organization, body.finetune_id)
        return wire.DeleteFinetuneResponse(
            status="success",
            message=f"Finetune {removed.name} was deleted.",
            deleted_finetune_id=removed.id,
            timestamp=show_time(time.time()),
        )


async def _answer_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, KleinLabError):
        raise error
    status = error.http_status
    if status >= 500 and not isinstance(error, Unavailable):
        logger.warning("%s", error)
    headers = {}
    if isinstance(error, TooManyTasks):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s or 1)))
    if status == 422:
        place = ["body", error.field] if isinstance(error, wire.InvalidField) else ["body"]
        return JSONResponse({"detail": [{"loc": place, "msg": _shorten(str(error)), "type": "value_error"}]}, status)
    return JSONResponse({"detail": _shorten(str(error))}, status, headers)


async def _answer_surprise(_request: Request, _error: Exception) -> Response:
    """JSON, as clients expect; the error itself goes to the log."""
    return JSONResponse({"detail": "The server failed on this request. Its log says why."}, 500)


async def _answer_invalid(_request: Request, error: Exception) -> Response:
    """BFL's three keys and no more: FastAPI would send the input back, images and all."""
    if not isinstance(error, RequestValidationError):
        raise error
    detail = [
        {"loc": list(found["loc"]), "msg": _shorten(found["msg"]), "type": found["type"]} for found in error.errors()
    ]
    return JSONResponse({"detail": detail}, 422)


def _shorten(message: str) -> str:
    """A message of bounded length that any encoding takes, whatever of the request it repeats."""
    text = message.encode(errors="replace").decode()
    half = MAX_MESSAGE // 2
    return text if len(text) <= MAX_MESSAGE else f"{text[: half - 2]} … {text[-(half - 2) :]}"
