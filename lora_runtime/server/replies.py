"""Tasks and finetunes as the wire shows them."""

from datetime import UTC, datetime

from lora_runtime.backends.bfl_words import Status
from lora_runtime.errors import LoraError, NotFound
from lora_runtime.lora.library import report_of
from lora_runtime.registry.finetune import Finetune
from lora_runtime.server.access import ResultUrls
from lora_runtime.server.tasks import Task
from lora_runtime.server.wire import ImageResult, ResultResponse


def show_task(task: Task, urls: ResultUrls, base_url: str, *, progress: float = 0.0) -> ResultResponse:
    """Return what a poll says; `progress` is that of a task under way."""
    if task.status is Status.PENDING:
        return ResultResponse(id=task.id, status=task.status, progress=progress)
    if task.status is not Status.READY:
        return ResultResponse(id=task.id, status=task.status, details=task.details)
    started, ended = task.started or task.created, task.ended or task.created
    result = ImageResult(
        sample=urls.make(base_url, task),
        prompt=task.request.prompt,
        seed=task.request.seed,
        start_time=started,
        end_time=ended,
        duration=round(ended - started, 3),
    )
    return ResultResponse(id=task.id, status=task.status, result=result, progress=1.0)


def show_finetune(finetune: Finetune) -> dict[str, object]:
    """Return what `finetune_details` says; of a file that was deleted by hand only what the registry knows."""
    try:
        report = report_of(finetune.lora)
        file: dict[str, object] = {"format": report.spelling, "rank": list(report.ranks)}
    except (NotFound, LoraError):
        file = {"format": None, "rank": []}
    return {
        "finetune_id": finetune.id,
        "name": finetune.name,
        "owner": finetune.owner,
        "source": finetune.source,
        "base_model": finetune.weights,
        "precision": finetune.precision,
        "endpoint": finetune.endpoint.name,
        "trigger_phrase": finetune.trigger_phrase,
        "recommended_strength": None if finetune.recommended_strength is None else float(finetune.recommended_strength),
        "sha256": finetune.lora.sha256,
        "size_bytes": finetune.size_bytes,
        **file,
        "granted_to": list(finetune.granted_to),
        "created": show_time(finetune.created),
        "updated": show_time(finetune.updated),
    }


def show_time(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
