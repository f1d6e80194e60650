"""A short run of `killed_servers.py`: nothing is lost, doubled or given up, however often a server is killed; and what
two servers on one PostgreSQL share."""

import os
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from lora_runtime.catalogue import POCKET
from lora_runtime.registry.accounts import LOCAL, Accounts
from lora_runtime.storage.database import Database
from tests.killed_servers import ask, kill_servers, living
from tests.lora_files import make_adapter, write_diffusers
from tests.postgres import make_database

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals")]


@pytest.mark.parametrize("database", ["sqlite", "postgresql, beside one that stands"])
def test_servers_that_are_killed_lose_double_and_give_up_nothing(
    database: str, request: pytest.FixtureRequest, home: Path
) -> None:
    beside = database != "sqlite"
    url = make_database(request.getfixturevalue("postgres")) if beside else None
    outcome = kill_servers(home, kills=6, seed=1, url=url, beside=beside)
    total = outcome.accepted + outcome.unheard
    assert outcome.statuses == {"Ready": total}
    assert outcome.billed == outcome.files == total > 0
    assert outcome.under_way > 0, "some died in the middle"


def test_servers_on_one_postgresql_share_finetunes_tasks_files_and_bills(
    postgres: str, home: Path, tmp_path: Path
) -> None:
    lora = write_diffusers(tmp_path / "a.safetensors", make_adapter(POCKET, rank=2)).read_bytes()
    url = make_database(postgres)
    body = {"prompt": "a red cat", "finetune_id": "mine", "width": 64, "height": 64, "output_format": "png"}
    with living(home, url) as (one, _), living(home, url) as (other, _):
        ask(one, "/v1/lab/upload_finetune?finetune_id=mine&base_model=pocket", lora)
        for seed, (asked, polled) in enumerate([(one, other), (other, one)] * 4):
            task = ask(asked, "/v1/flux-2-klein-pocket-finetuned", {**body, "seed": seed})
            while (answer := ask(polled, f"/v1/get_result?id={task['id']}"))["status"] == "Pending":
                time.sleep(0.05)
            here = answer["result"]["sample"]
            there = here.replace(f":{polled}/", f":{asked}/")
            assert fetch(here) == fetch(there) != b""
    with closing(Database(url)) as database:
        assert Accounts(database).spent(LOCAL)[0] == 8


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as reply:
        data: bytes = reply.read()
    return data
