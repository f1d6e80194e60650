"""A server that can be scripted, and a remote backend that talks to it."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from lora_runtime.backends.remote import RemoteBackend
from tests.bfl_doubles import KEY, BflDouble

from .calls import QUICK


@pytest.fixture
def server() -> Iterator[BflDouble]:
    with BflDouble() as double:
        yield double


@pytest.fixture
def remote(server: BflDouble) -> Iterator[RemoteBackend]:
    with closing(RemoteBackend(server.origin, KEY, pace=QUICK)) as backend:
        yield backend
