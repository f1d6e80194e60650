"""HTTP to one server: its key, whom it may name, how much it may say, and which faults leave a request unsent.

The key is sent to the configured origin, and to the other hosts of bfl.ai when the origin is one of them; never to
where images are delivered, and never along a redirect, as none is followed. Every body is read up to a limit.
"""

import re
import ssl
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import httpx
from pydantic import SecretStr

from lora_runtime.backends.bfl import REGIONS, plain
from lora_runtime.errors import InvalidInput, RemoteFailed, Unavailable

MAX_ANSWER_BYTES: Final = 1024 * 1024
MAX_IMAGE_BYTES: Final = 64 * 1024 * 1024

TIMEOUT: Final = httpx.Timeout(60, connect=10)
"""Seconds without a byte; the whole of a render has a timeout of its own."""

KEEP_ALIVE_S: Final = 2.0
"""Below what servers keep an idle connection for (uvicorn: 5 s), so that a request hardly ever meets a closing one."""

_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_DIRECT: Final = {"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None}
_JSON: Final = {"content-type": "application/json"}
_SHORTEST_KEY: Final = 8
_HOST: Final = re.compile(r"[\w.:-]+")


class NotSent(RemoteFailed):
    """The server never got the request: sending it again is safe."""


class BrokenOff(RemoteFailed):
    """The exchange ended before the answer was whole; the server may have done what was asked."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Status and whole body; `retry_after` is the header."""

    status: int
    body: bytes
    retry_after: str | None


class Http:
    """A client of the server at `place`: a region (global, eu, us) or a base URL.

    Raises:
        InvalidInput: The base URL or the key is malformed.
        Unavailable: The environment asks for a proxy or certificates that cannot be used.
    """

    def __init__(self, place: str, key: str | None) -> None:
        self._base = _read_base(place)
        self._auth = _read_key(key)
        try:
            self._client = httpx.AsyncClient(
                verify=_read_certificates(),
                timeout=TIMEOUT,
                limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
                headers={"user-agent": "klein-lora-lab", "accept": "application/json, image/*"},
                mounts=_DIRECT,
            )
        except (ImportError, ValueError, OSError) as error:
            raise Unavailable(
                f"No connection can be made with the proxy or certificates that the environment names: {error}."
            ) from error

    @property
    def origin(self) -> str:
        """The base URL, without a slash at its end."""
        return str(self._base).rstrip("/")

    @property
    def has_key(self) -> bool:
        """Whether there is a key to send."""
        return self._auth is not None

    @property
    def is_bfl(self) -> bool:
        """Whether this is BFL's own API."""
        return _is_bfl(self._base)

    async def post(self, path: str, body: bytes) -> Answer:
        """Send a request that may cost something; `body` is JSON.

        Raises:
            NotSent: It never arrived.
            BrokenOff: Nobody knows whether it arrived.
        """
        return await self._fetch("POST", httpx.URL(self.origin + path), self._auth, body=body)

    async def get(self, path: str) -> Answer:
        """Ask something of the API.

        Raises:
            NotSent, BrokenOff: As in `post`.
        """
        return await self._fetch("GET", httpx.URL(self.origin + path), self._auth)

    async def poll(self, url: str) -> Answer:
        """Ask the very URL that the API returned.

        Raises:
            RemoteFailed: It is on a host that this API has no business to name.
            NotSent, BrokenOff: As in `post`.
        """
        target = _read_url(url)
        bfl = target is not None and target.scheme == "https" and _is_bfl(target)
        if target is None or not (bfl or _same_origin(target, self._base)):
            raise RemoteFailed(
                f"{self.origin} returned the polling URL {plain(url)!r}, which is neither its own nor BFL's, and was "
                "not followed. If the server is behind a proxy, use the address it gives itself as base URL."
            )
        trusted = _same_origin(target, self._base) or self.is_bfl
        return await self._fetch("GET", target, self._auth if trusted else None)

    async def download(self, url: str) -> Answer:
        """Fetch an image, without the key.

        Raises:
            RemoteFailed: The URL is not https (nor of the server itself), or the image is too large.
            NotSent, BrokenOff: As in `post`.
        """
        target = _read_url(url)
        if target is None or not (target.scheme == "https" or _same_origin(target, self._base)):
            raise RemoteFailed(f"{self.origin} delivers the image at {plain(url)!r}, which is not https: not followed.")
        return await self._fetch("GET", target, None, limit=MAX_IMAGE_BYTES)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def _fetch(
        self,
        method: Literal["GET", "POST"],
        url: httpx.URL,
        auth: "_Key | None",
        *,
        body: bytes | None = None,
        limit: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        place = f"{url.scheme}://{url.netloc.decode('ascii')}"
        data = bytearray()
        try:
            async with self._client.stream(
                method, url, content=body, headers=_JSON if body else None, auth=auth, follow_redirects=False
            ) as response:
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > limit:
                        raise RemoteFailed(f"{place} answers with more than {limit // 1024**2} MB: not read.")
        except _UNSENT as error:
            raise NotSent(
                f"{place} could not be reached ({_name(error)}). Check the connection and the URL."
            ) from error
        except httpx.HTTPError as error:
            raise BrokenOff(f"{place} broke off ({_name(error)}).") from error
        return Answer(
            status=response.status_code,
            body=auth.hide(bytes(data)) if auth else bytes(data),
            retry_after=response.headers.get("retry-after"),
        )


class _Key(httpx.Auth):
    """Puts the key into a request and takes it out again, as an exception of httpx carries its request."""

    def __init__(self, key: SecretStr) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["x-key"] = self._key.get_secret_value()
        try:
            yield request
        finally:
            del request.headers["x-key"]

    def hide(self, data: bytes) -> bytes:
        """Blot out the key where the other side repeats it."""
        key = self._key.get_secret_value().encode()
        return data.replace(key, b"***") if len(key) >= _SHORTEST_KEY else data


@lru_cache(maxsize=1)
def _read_certificates() -> ssl.SSLContext:
    """The trusted certificates; reading them takes longer than everything else here."""
    return httpx.create_ssl_context()


def _read_key(key: str | None) -> _Key | None:
    text = (key or "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidInput("API key: it holds a character that no key has. Copy it again, whole and alone.")
    return _Key(SecretStr(text))


def _read_base(place: str) -> httpx.URL:
    text = place.strip()
    url = _read_url(REGIONS.get(text.lower(), text))
    if url is None or url.query or url.fragment:
        shown = plain(text) if "@" not in text else "…@…"  # there may be a password
        raise InvalidInput(
            f"Remote: {shown!r} is neither a region ({', '.join(REGIONS)}) nor a base URL such as "
            "http://127.0.0.1:7860."
        )
    if url.scheme == "http" and _is_bfl(url):
        raise InvalidInput(f"Remote: {url} would send the key in the clear. Write https.")
    return url.copy_with(path=url.path.rstrip("/").removesuffix("/v1") or "/")


def _read_url(text: str) -> httpx.URL | None:
    """Return an absolute http or https URL without user and password, or None."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return None
    whole = url.scheme in ("http", "https") and _HOST.fullmatch(url.host) and not url.userinfo
    return url if whole else None


def _same_origin(one: httpx.URL, other: httpx.URL) -> bool:
    return (one.scheme, one.host, _port(one)) == (other.scheme, other.host, _port(other))


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _is_bfl(url: httpx.URL) -> bool:
    return (url.host == "bfl.ai" or url.host.endswith(".bfl.ai")) and url.port in (None, 443)


def _name(error: Exception) -> str:
    """What happened, without URLs."""
    return plain(f"{type(error).__name__}: {error}".removesuffix(": "))
