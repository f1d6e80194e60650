"""Who is asking: the organization of a key, or whoever sits at this machine; and how they reach this server.

Without any key the server answers on loopback only. A proxy on this machine also connects from loopback, so every
address and host name that a request carries must be local too; `door.py` looks at the page it comes from.
"""

import re
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request

from lora_runtime.errors import NotAuthorized
from lora_runtime.registry.accounts import LOCAL, Accounts
from lora_runtime.server.addresses import is_loopback, is_loopback_name

_HOST = re.compile(r"[A-Za-z0-9._~-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
NO_KEYS: Final = (
    "Not authenticated: this server has no keys, so it answers on its own machine only. Make one there with "
    "`python -m lora_runtime keys create --organization NAME` and send it as the x-key header."
)


def find_caller(accounts: Accounts, request: Request, key: str | None) -> str:
    """Return the organization that a request speaks for.

    Raises:
        NotAuthorized: There are keys and this is none; or there are none and the request is not from this machine.
    """
    if accounts.has_keys():
        return accounts.authenticate(key)
    if not _is_local(request):
        raise NotAuthorized(NO_KEYS)
    return LOCAL


def read_base_url(request: Request, public_url: str | None) -> str:
    """Return `scheme://host[/prefix]` of this server as the caller reaches it, proxies included."""
    if public_url:
        return public_url.rstrip("/")
    forwarded = {name: _first(request, f"x-forwarded-{name}") for name in ("proto", "host", "prefix")}
    scheme = forwarded["proto"] if forwarded["proto"] in ("http", "https") else request.url.scheme
    named = [host for host in (forwarded["host"], _first(request, "host")) if _HOST.fullmatch(host)]
    host = named[0] if named else request.url.netloc
    prefix = forwarded["prefix"].rstrip("/")
    return f"{scheme}://{host}{prefix if _PREFIX.fullmatch(prefix) else ''}"


def split_values(headers: Headers, name: str) -> list[str]:
    """Every value of a header, however many lines and commas divide them."""
    return [part.strip() for value in headers.getlist(name) for part in value.split(",")]


def _is_local(request: Request) -> bool:
    addresses = [request.client.host if request.client else "", *split_values(request.headers, "x-forwarded-for")]
    addresses += [address for name in ("x-real-ip", "forwarded") if (address := _first(request, name))]
    names = [_first(request, "host"), *split_values(request.headers, "x-forwarded-host")]
    return all(map(is_loopback, addresses)) and all(map(is_loopback_name, names))


def _first(request: Request, header: str) -> str:
    return request.headers.get(header, "").split(",")[0].strip()
