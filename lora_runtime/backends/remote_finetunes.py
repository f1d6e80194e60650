"""Under which id a server knows a LoRA.

Given by hand, or found by what the file holds: a server of this lab says the SHA-256 and the endpoint of each of its
finetunes, so the same file is recognised under whatever name it was registered there. BFL's API does not say it.
"""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import quote

from lora_runtime.backends.bfl import read_details, read_error, read_finetunes
from lora_runtime.backends.remote_http import Http
from lora_runtime.catalogue import Endpoint
from lora_runtime.errors import NotFound
from lora_runtime.values import LoraRef


class RemoteFinetunes:
    """The finetunes of one server. `given` are ids by the SHA-256 of the file; they are believed."""

    def __init__(self, http: Http, given: Mapping[str, str]) -> None:
        self._http = http
        self._given = dict(given)
        self._lock = asyncio.Lock()
        self._reads = 0
        self._found: Mapping[tuple[str, str], str] = MappingProxyType({})

    async def ask_id(self, lora: LoraRef, endpoint: Endpoint) -> str:
        """Return the id of `lora` at `endpoint`.

        Raises:
            NotFound: The server does not have it, or does not say; the message says what to do.
            RemoteFailed, NotAuthorized: The server could not be asked.
        """
        known = lora.finetune_id or self._given.get(lora.sha256)
        if known is not None:
            return known
        key = (lora.sha256, endpoint.name)
        reads = self._reads
        async with self._lock:
            if key not in self._found and self._reads == reads:  # nobody read them while this one waited
                self._found = await self._read()
                self._reads += 1
        if key not in self._found:
            raise NotFound(
                f"{self._http.origin} is not known to have the LoRA {lora.name} for {endpoint.name}. Register its file "
                f"there, or, when it is there, say its id: --finetune {lora.name}=ID."
            )
        return self._found[key]

    async def _read(self) -> Mapping[tuple[str, str], str]:
        answer = await self._http.get("/v1/my_finetunes")
        if answer.status != 200:
            raise read_error(answer.status, answer.body, where=self._http.origin)
        found: dict[tuple[str, str], str] = {}
        for finetune_id in read_finetunes(answer.body):
            answer = await self._http.get(f"/v1/finetune_details?finetune_id={quote(finetune_id, safe='')}")
            details = read_details(answer.body) if answer.status == 200 else None
            if details is None:
                break  # a server that does not say it of one does not say it of any
            found.setdefault(details, finetune_id)
        return found
