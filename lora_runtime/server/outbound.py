"""HTTP to addresses that callers name: input images and webhooks. The only HTTP client of the server.

A caller must not make the server speak to what only the server can reach. So a host name is resolved once, every one of
its addresses must be public, and the connection goes to the address that was checked, at each redirect anew. TLS still
checks the certificate of the name. Proxies of the environment are not used: they would resolve the name again.

A connection serves one request, and lives no longer than that may take: a receiver that sends a byte now and then
holds nothing up.
"""

import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpcore
import httpx

from lora_runtime.errors import InvalidInput, RemoteFailed
from lora_runtime.server.addresses import Address, is_public

MAX_REDIRECTS: Final = 3
FETCH_S: Final = 15.0
"""How long an input image may take, from the first byte sent to the last one received."""

LOOK_UP_S: Final = 1.0
"""How long a submit waits to hear that a webhook's address is private; a slower name is checked when it is called."""

_LOOK_UPS: Final = 32
"""Names that are looked up at the same time; a name service that does not answer takes no more threads than these."""

_PORTS: Final = {"http": 80, "https": 443}

_LABEL: Final = re.compile(r"[\w-]{1,63}", re.ASCII)
_NO_URL: Final = "This is no http or https URL that can be sent to."
_PRIVATE: Final = (
    "{host} is at {address}, which is not a public address, and this server does not speak to private networks for "
    "others. KLEIN_LAB_ALLOW_PRIVATE_NETWORKS=1 allows it."
)


class Outbound:
    """Fetches and posts. `allow_private` lets it speak to every address."""

    def __init__(self, *, allow_private: bool) -> None:
        self._network = _Guarded(allow_private=allow_private)
        self._client = httpx.Client(
            transport=_Transport(self._network),
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
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise RemoteFailed(f"{_show(url)} could not be reached: {_reason(error)}.") from error

    def require_reachable(self, url: str) -> None:
        """Refuse an address that `post` would refuse, as far as is known within `LOOK_UP_S`.

        Raises:
            InvalidInput: It is no http or https URL that can be sent to, or it is not public.
        """
        parts = read_url(url)
        try:
            self._network.find_address(parts.raw_host.decode(), _port(parts), time.monotonic() + LOOK_UP_S)
        except httpcore.ConnectError:  # unknown today, or slow: it is tried when there is something to tell
            return

    def close(self) -> None:
        """Close every connection."""
        self._client.close()


class _Transport(httpx.HTTPTransport):
    """httpx over a network of ours; no connection is kept, so none serves another name at the same address."""

    def __init__(self, network: "_Guarded") -> None:
        super().__init__(trust_env=False)
        context = httpx.create_ssl_context(trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=context, network_backend=network, max_connections=None, max_keepalive_connections=0
        )


class _Guarded(httpcore.NetworkBackend):
    """Connects to names whose every address was checked, at that address, until the time of the request is over."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._plain = httpcore.SyncBackend()
        self._look_ups = threading.BoundedSemaphore(_LOOK_UPS)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """See `httpcore.NetworkBackend`; `timeout` is for all that the connection is used for."""
        end = time.monotonic() + (FETCH_S if timeout is None else timeout)
        address = self.find_address(host, port, end)
        left = _left(end, httpcore.ConnectTimeout)
        return _Timed(self._plain.connect_tcp(str(address), port, left, local_address, socket_options), end)

    def find_address(self, host: str, port: int, end: float) -> Address:
        """Return the address to connect to, which is public unless private ones are allowed.

        Raises:
            InvalidInput: One of its addresses is not.
            httpcore.ConnectError: The name is not known, or was not until `end` of the monotonic clock.
        """
        found = self._look_up(host, port, end)
        private = [address for address in found if not is_public(address)]
        if private and not self._allow_private:
            raise InvalidInput(_PRIVATE.format(host=host, address=private[0]))
        return found[0]

    def _look_up(self, host: str, port: int, end: float) -> list[Address]:
        """Ask the name service in a thread of its own: it has no time limit that could be set."""
        found: list[list[Address]] = []

        def ask() -> None:
            try:
                entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found.append([ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries])
            except (OSError, UnicodeError, ValueError):
                found.append([])
            finally:
                self._look_ups.release()

        if self._look_ups.acquire(timeout=max(0.0, end - time.monotonic())):
            thread = threading.Thread(target=ask, name="klein-look-up", daemon=True)
            thread.start()
            thread.join(max(0.0, end - time.monotonic()))
        if not found:
            raise httpcore.ConnectError(f"the name {host} was not found in time")
        if not found[0]:
            raise httpcore.ConnectError(f"the name {host} is not known")
        return found[0]


class _Timed(httpcore.NetworkStream):
    """A connection that ends at `end` of the monotonic clock, whatever it is doing then."""

    def __init__(self, stream: httpcore.NetworkStream, end: float) -> None:
        self._stream = stream
        self._end = end

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._end, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._end, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(self._end, httpcore.ConnectTimeout)
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, left), self._end)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def read_url(url: str) -> httpx.URL:
    """Return the parts of an address that a request can be sent to, as the client reads it.

    Raises:
        InvalidInput: It is none: of another scheme, without a host, or with one that no name service takes.
    """
    try:
        parts = httpx.URL(url)
        host = parts.raw_host.decode()
        valid = parts.host != "" and parts.scheme in _PORTS and 0 < _port(parts) < 65536
    except (httpx.InvalidURL, UnicodeError) as error:  # the latter is IDNA's
        raise InvalidInput(_NO_URL) from error
    named = len(host) <= 253 and all(map(_LABEL.fullmatch, host.removesuffix(".").split(".")))
    numbered = ":" in host and "%" not in host
    if not valid or not (named or numbered) or not url.isprintable() or {" ", "\\"} & {*url}:
        raise InvalidInput(_NO_URL)
    return parts


def _port(url: httpx.URL) -> int:
    return _PORTS.get(url.scheme, 0) if url.port is None else url.port


def _left(end: float, late: type[httpcore.TimeoutException]) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise late("it took too long")
    return left


@contextmanager
def _faults(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise InvalidInput(f"{_show(url)} could not be fetched: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _show(url: str) -> str:
    """A URL without its query, which may hold a token."""
    return url.partition("?")[0][:200]
