"""Routes of our own, below /v1/lab: what BFL has in its Dashboard only, in the manner of its other finetune routes."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Final, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from lora_runtime.errors import NotFound
from lora_runtime.registry.finetune import Finetune, Source
from lora_runtime.server.access import read_base_url
from lora_runtime.server.replies import show_finetune, show_time
from lora_runtime.server.service import Service
from lora_runtime.server.statuses import refusals
from lora_runtime.server.wire import FinetuneDetailResponse, Inputs, Text
from lora_runtime.snippets import Language, write_example

LAB_TAG: Final = "Klein LoRA Lab"
UPLOAD_PATH: Final = "/v1/lab/upload_finetune"
_FILE_TYPE: Final = "application/octet-stream"

Filter = Literal["all", "owned", "shared", "official"]
_SOURCES: Final = {"owned": Source.OWNED, "shared": Source.THIRD_PARTY, "official": Source.OFFICIAL}


class FinetunesResponse(BaseModel):
    """Everything about several finetunes."""

    finetunes: list[dict[str, object]]


class EditFinetuneInputs(Inputs):
    """What to change; null leaves it as it is."""

    finetune_id: str
    base_model: str | None = Field(default=None, examples=["klein-9b-kv"])
    precision: str | None = Field(default=None, description="bf16 only for klein-9b-kv.")
    trigger_phrase: str | None = Field(default=None, description="An empty one clears it.")
    recommended_strength: str | float | None = Field(default=None, examples=[0.75], description='"" clears it.')


class GrantInputs(Inputs):
    """Which finetune, and the other organization."""

    finetune_id: str
    organization_id: str


class RestoreInputs(Inputs):
    """Which deleted finetune."""

    finetune_id: str


class DeliveryResponse(BaseModel):
    """What became of a task's webhook."""

    id: str
    state: Literal["pending", "delivered", "dropped"]
    attempts: list[dict[str, object]]


def add_lab_routes(api: FastAPI, service: Service, caller: Callable[..., Awaitable[str]]) -> None:
    """Add the routes to the API."""
    _add_upload(api, service, caller)
    _add_management(api, service, caller)

    @api.get(
        "/v1/lab/finetunes", responses=refusals(), tags=[LAB_TAG], summary="List finetunes with everything about them"
    )
    def list_finetunes(organization: Annotated[str, Depends(caller)], source: Filter = "all") -> FinetunesResponse:
        found = service.finetunes.list(organization, source=_SOURCES.get(source))
        return FinetunesResponse(finetunes=list(map(show_finetune, found)))

    @api.get(
        "/v1/lab/finetune_example",
        responses=refusals(),
        response_class=PlainTextResponse,
        tags=[LAB_TAG],
        summary="Download a program that calls a finetune",
    )
    def finetune_example(
        request: Request,
        finetune_id: Text,
        organization: Annotated[str, Depends(caller)],
        language: Language = "curl",
    ) -> PlainTextResponse:
        finetune = service.finetunes.find(organization, finetune_id)
        program = write_example(finetune, read_base_url(request, service.settings.public_url), language)
        name = f"{finetune.name}.{'sh' if language == 'curl' else 'py'}"
        return PlainTextResponse(program, headers={"content-disposition": f'attachment; filename="{name}"'})

    @api.get("/v1/lab/webhook", responses=refusals(), tags=[LAB_TAG], summary="Say what became of a task's webhook")
    def webhook(id: Text, organization: Annotated[str, Depends(caller)]) -> DeliveryResponse:  # noqa: A002 - as get_result
        task, delivery = service.tasks.find(id), service.deliveries.find(id)
        if task is None or delivery is None or task.organization != organization:
            raise NotFound(f"No webhook of a task {id!r} of yours is known: it has none, runs still, or has expired.")
        attempts = [asdict(attempt) | {"at": show_time(attempt.at)} for attempt in delivery.attempts]
        return DeliveryResponse(id=id, state=delivery.state, attempts=attempts)


def _add_upload(api: FastAPI, service: Service, caller: Callable[..., Awaitable[str]]) -> None:
    @api.post(
        UPLOAD_PATH,
        tags=[LAB_TAG],
        summary="Upload a LoRA",
        responses=refusals(400, 409, 415),
        description="The body is the .safetensors file itself, with content-type application/octet-stream: "
        "`curl --data-binary @my.safetensors -H 'content-type: application/octet-stream' ...`",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {_FILE_TYPE: {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def upload_finetune(
        request: Request,
        organization: Annotated[str, Depends(caller)],
        finetune_id: Annotated[Text, Query(description="Lowercase letters, digits, hyphens, and underscores only.")],
        base_model: Annotated[Text, Query(examples=["klein-9b-kv"])],
        precision: Text | None = None,
        trigger_phrase: Text | None = None,
    ) -> FinetuneDetailResponse:
        # A form of a foreign web page can post other types without asking the browser's leave.
        if request.headers.get("content-type", "").partition(";")[0].strip() != _FILE_TYPE:
            raise HTTPException(415, f"Send the .safetensors file as the body, with content-type {_FILE_TYPE}.")
        with service.finetunes.upload(f"{finetune_id}.safetensors") as upload:
            try:
                async for chunk in request.stream():
                    await run_in_threadpool(upload.write, chunk)
            except ClientDisconnect as error:  # nobody reads the answer, but the log should not call it a fault
                raise HTTPException(400, "The upload broke off.") from error

            def add() -> Finetune:
                return service.finetunes.add(
                    organization,
                    upload,
                    name=finetune_id,
                    weights=base_model,
                    precision=precision,
                    trigger_phrase=trigger_phrase,
                )

            return _details(await run_in_threadpool(add))


def _add_management(api: FastAPI, service: Service, caller: Callable[..., Awaitable[str]]) -> None:
    @api.post(
        "/v1/lab/edit_finetune",
        responses=refusals(body=True),
        tags=[LAB_TAG],
        summary="Change base, precision, trigger phrase or recommended strength",
    )
    def edit_finetune(
        body: EditFinetuneInputs, organization: Annotated[str, Depends(caller)]
    ) -> FinetuneDetailResponse:
        return _details(
            service.finetunes.edit(
                organization,
                body.finetune_id,
                weights=body.base_model,
                precision=body.precision,
                trigger_phrase=body.trigger_phrase,
                recommended_strength=None if body.recommended_strength is None else str(body.recommended_strength),
            )
        )

    @api.post(
        "/v1/lab/grant_finetune",
        responses=refusals(body=True),
        tags=[LAB_TAG],
        summary="Share a finetune with an organization",
    )
    def grant_finetune(body: GrantInputs, organization: Annotated[str, Depends(caller)]) -> FinetuneDetailResponse:
        return _details(service.finetunes.grant(organization, body.finetune_id, body.organization_id))

    @api.post("/v1/lab/revoke_finetune", responses=refusals(body=True), tags=[LAB_TAG], summary="Take a grant back")
    def revoke_finetune(body: GrantInputs, organization: Annotated[str, Depends(caller)]) -> FinetuneDetailResponse:
        return _details(service.finetunes.revoke(organization, body.finetune_id, body.organization_id))

    @api.post("/v1/lab/restore_finetune", responses=refusals(body=True), tags=[LAB_TAG], summary="Take a deletion back")
    def restore_finetune(body: RestoreInputs, organization: Annotated[str, Depends(caller)]) -> FinetuneDetailResponse:
        return _details(service.finetunes.restore(organization, body.finetune_id))


def _details(finetune: Finetune) -> FinetuneDetailResponse:
    return FinetuneDetailResponse(finetune_details=show_finetune(finetune))
