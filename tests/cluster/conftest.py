"""The backend on two Ray nodes. Without Ray nothing of this folder is collected: `make test-cluster` installs it."""

from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.cluster.waiting import open_cluster, wait_for_engines
from tests.ray_nodes import Nodes

if TYPE_CHECKING:
    from lora_runtime.backends.cluster import ClusterBackend

collect_ignore_glob = [] if find_spec("ray") else ["test_*.py"]


@pytest.fixture(scope="session")
def cluster(nodes: Nodes) -> Iterator["ClusterBackend"]:
    """The backend on them, once both engines are there."""
    with closing(open_cluster(nodes.address)) as backend:
        wait_for_engines(backend, 2)
        yield backend
