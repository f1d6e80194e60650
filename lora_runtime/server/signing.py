"""Signed URLs of results: whoever has one may fetch the image, without a key, until it expires.

The shape is that of BFL's delivery URLs: the file is called sample.<format>, `se` is when it expires.
"""

import math
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from itsdangerous import Signer

from lora_runtime.errors import NotAuthorized
from lora_runtime.server.tasks import Task

_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


class ResultUrls:
    """Makes and checks the URLs of results with one secret."""

    def __init__(self, secret: str) -> None:
        self._signer = Signer(secret, salt="klein-lora-lab.results")

    def make(self, base_url: str, task: Task) -> str:
        """Return the URL of a finished task's image."""
        name = f"sample.{task.output_format}"
        expires = datetime.fromtimestamp(math.ceil(task.expires or 0.0), UTC).strftime(_TIME)
        query = {"se": expires, "rsct": f"image/{task.output_format}", "sig": self._sign(task.id, name, expires)}
        return f"{base_url}/v1/results/{task.id}/{name}?{urlencode(query, safe='/')}"

    def check(self, task_id: str, name: str, expires: str, signature: str, *, now: float) -> None:
        """Refuse a URL that was not made here, or whose time is over.

        Raises:
            NotAuthorized: Either; the message says which.
        """
        if not self._signer.verify_signature(_value(task_id, name, expires), signature):
            raise NotAuthorized("This URL was not signed here. Poll the task for its own.")
        if datetime.strptime(expires, _TIME).replace(tzinfo=UTC).timestamp() <= now:
            raise NotAuthorized(f"This URL expired at {expires}. Results are kept for ten minutes; render it again.")

    def _sign(self, task_id: str, name: str, expires: str) -> str:
        return self._signer.get_signature(_value(task_id, name, expires)).decode()


def _value(task_id: str, name: str, expires: str) -> str:
    return f"{task_id}/{name}/{expires}"
