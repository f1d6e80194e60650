"""What an answer's status means, for the documentation of each route: `refusals(402, 429)`."""

from typing import Any, Final

_PROBLEM: Final = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"type": "string", "description": "What is wrong, and what to do."}},
}

_ALWAYS: Final = (403, 404, 507)
_WITH_A_BODY: Final = (400, 413)

_MEANING: Final = {
    400: "The body cannot be read, or the finetune belongs to another endpoint.",
    402: "The credits do not pay for it.",
    403: "The key is missing, wrong or revoked, or this is somebody else's; without keys: not from this machine.",
    404: "There is none, or it is not shared with you.",
    409: "The name is taken.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "Too many tasks are active; Retry-After says when to come back.",
    503: "The weights cannot run on this server; the detail says why.",
    507: "The disk or the database of the server takes nothing more.",
}


def refusals(*statuses: int, body: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that answers with these, beside what every route may answer; 422 is FastAPI's.

    `body` says that it takes JSON.
    """
    found = sorted({*statuses, *_ALWAYS, *(_WITH_A_BODY if body else ())})
    content = {"application/json": {"schema": _PROBLEM}}
    return {status: {"description": _MEANING[status], "content": content} for status in found}
