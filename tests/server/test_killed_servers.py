"""A short run of `killed_servers.py`: nothing is lost, doubled or given up, however often the server is killed."""

import os
from pathlib import Path

import pytest

from tests.killed_servers import kill_servers


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_servers_that_are_killed_lose_double_and_give_up_nothing(tmp_path: Path) -> None:
    outcome = kill_servers(tmp_path / "home", kills=6, seed=1)
    total = outcome.accepted + outcome.unheard
    assert outcome.statuses == {"Ready": total}
    assert outcome.billed == outcome.files == total > 0
    assert outcome.under_way > 0, "some died in the middle"
