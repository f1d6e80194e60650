"""HTTP to addresses that callers name: input images and webhooks. The only HTTP client of the server.

A caller must not make the server speak to what only the server can reach. So a host name is resolved once, every one of
its addresses must be public, and the connection goes to the address that was checked, at each redirect anew. TLS still
checks the certificate of the name. Proxies of the environment are not used: they would resolve the name again.
"""

import ipaddress
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeAlias

import httpx

from lora_runtime.errors import InvalidInput, RemoteFailed

MAX_REDIRECTS: Final = 3
FETCH_S: Final = 15.0
"""How long an input image may take, from the first byte sent to the last one received."""

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_PRIVATE: Final = (
    "{host} is at {address}, which is not a public address, and this server does not speak to private networks for "
    "others. KLEIN_LAB_ALLOW_PRIVATE_NETWORKS=1 allows it."
)


class Outbound:
    """Fetches and posts. `allow_private` lets it speak to every address."""

    def __init__(self, *, allow_private: bool) -> None:
        self._client = httpx.Client(
            transport=_Guarded(allow_private=allow_private),
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            trust_env=False,
            headers={"user-agent": "klein-lora-lab"},
        )

    def fetch(self, url: str, *, max_bytes: int, content_type: str) -> bytes:
        """Return what is at `url`, which must be of a type such as `image/`, within `max_bytes` and `FETCH_S`.

        Raises:
            InvalidInput: It is not, it cannot be reached, or its address is not public.
        """
        end = time.monotonic() + FETCH_S
        with _faults(url), self._client.stream("GET", url, timeout=FETCH_S) as reply:
            if reply.status_code != httpx.codes.OK:
                raise InvalidInput(f"{_show(url)} answered {reply.status_code}. Give a URL that needs no login.")
            found = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
            if not found.startswith(content_type) and found not in ("", "application/octet-stream"):
                raise InvalidInput(f"{_show(url)} is {found}, not {content_type}*. Give the URL of the file itself.")
            data = bytearray()
            for chunk in reply.iter_bytes():
                data += chunk
                if len(data) > max_bytes:
                    raise InvalidInput(f"{_show(url)} has more than {max_bytes // 10**6} MB, which is the limit.")
                if time.monotonic() > end:
                    raise InvalidInput(f"{_show(url)} took more than {FETCH_S:.0f} s. Send the image as base64.")
        return bytes(data)

    def post(self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> int:
        """Post JSON and return the status of the answer, which is not read. Redirects are not followed.

        Raises:
            InvalidInput: The address is not public.
            RemoteFailed: It cannot be reached.
        """
        headers = {"content-type": "application/json", **headers}
        try:
            with self._client.stream(
                "POST", url, content=body, headers=headers, timeout=timeout_s, follow_redirects=False
            ) as reply:
                return reply.status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RemoteFailed(f"{_show(url)} could not be reached: {_reason(error)}.") from error

    def close(self) -> None:
        """Close every connection."""
        self._client.close()


class _Guarded(httpx.HTTPTransport):
    """Connects to the address that was checked, and speaks to the name."""

    def __init__(self, *, allow_private: bool) -> None:
        # A kept connection belongs to an address, and another name at that address must not ride on its certificate.
        super().__init__(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
        self._allow_private = allow_private

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        address = _resolve(host, request.url.port or {"http": 80, "https": 443}.get(request.url.scheme, 0))
        if not (self._allow_private or all(map(is_public, address))):
            private = next(found for found in address if not is_public(found))
            raise InvalidInput(_PRIVATE.format(host=host, address=private))
        return super().handle_request(
            httpx.Request(
                request.method,
                request.url.copy_with(host=str(address[0])),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
        )


def is_public(address: _Address) -> bool:
    """Whether everybody can reach `address`; what is embedded in an IPv6 address counts."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if embedded is None and address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded)
    return address.is_global and not address.is_multicast


def _resolve(host: str, port: int) -> list[_Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    except (OSError, UnicodeError, ValueError) as error:
        raise httpx.ConnectError(f"the name {host} is not known") from error


@contextmanager
def _faults(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InvalidInput(f"{_show(url)} could not be fetched: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _show(url: str) -> str:
    """A URL without its query, which may hold a token."""
    return url.partition("?")[0][:200]
