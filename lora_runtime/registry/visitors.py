"""Who is at the page: one organization for everybody, or one for each browser.

On a person's own machine everybody at the page is the organization `local`, as for the HTTP API. A public demo keeps
visitors apart: each browser holds a random token of its own, and the organization is made of its hash, so a reload
finds the same work and nobody else does.
"""

import hashlib
import re
import secrets
import threading
from typing import Final

from lora_runtime.registry.accounts import LOCAL

VISITOR_PREFIX: Final = "visitor-"
"""How the organizations of browsers begin."""

_TOKEN = re.compile(r"[0-9a-f]{48}")


class Visitors:
    """The organization of each page that is open. A page is known by Gradio's session hash."""

    def __init__(self, *, apart: bool) -> None:
        self.apart = apart
        self._lock = threading.Lock()
        self._organizations: dict[str, str] = {}

    def enter(self, session: str, token: str) -> None:
        """Note whose browser shows the page; a token that is none (storage is blocked) leaves it on its own."""
        if self.apart and _TOKEN.fullmatch(token):
            with self._lock:
                self._organizations[session] = _name(token)

    def organization(self, session: str | None) -> str:
        """Return the organization that a page acts for; a program without a session is a new one with every call."""
        if not self.apart:
            return LOCAL
        with self._lock:
            known = self._organizations.get(session) if session else None
        return known or _name(f"session:{session or secrets.token_hex(16)}")

    def leave(self, session: str) -> None:
        """Forget a page that was closed."""
        with self._lock:
            self._organizations.pop(session, None)


def _name(secret: str) -> str:
    return VISITOR_PREFIX + hashlib.sha256(secret.encode()).hexdigest()[:32]
