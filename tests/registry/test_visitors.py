"""Whose work a page sees: one organization for everybody, or one for each browser; and what it can choose from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_runtime.errors import InvalidInput, NotFound
from lora_runtime.lora.library import find_lora
from lora_runtime.registry.accounts import LOCAL, check_organization
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.visitors import Visitors
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from tests.drawing_backend import make_lora

TOKEN, OTHER = "a1" * 24, "b2" * 24


@pytest.fixture
def finetunes(home: Path) -> Iterator[Finetunes]:
    database = Database(f"sqlite:///{home / 'lab.sqlite3'}")
    yield Finetunes(database, Blobs(home / "api"), max_bytes=10**9)
    database.close()


@pytest.fixture
def shelf(finetunes: Finetunes) -> Shelf:
    return Shelf(finetunes)


def test_together_everybody_is_the_local_organization() -> None:
    visitors = Visitors(apart=False)
    visitors.enter("page", TOKEN)
    assert visitors.organization("page") == visitors.organization("another") == visitors.organization(None) == LOCAL


def test_apart_a_browser_is_the_same_on_every_page_and_no_other() -> None:
    visitors = Visitors(apart=True)
    for session, token in (("page", TOKEN), ("reloaded", TOKEN), ("elsewhere", OTHER)):
        visitors.enter(session, token)
    mine = visitors.organization("page")
    assert check_organization(mine) == mine == visitors.organization("reloaded")
    assert visitors.organization("elsewhere") != mine
    assert TOKEN not in mine


@pytest.mark.parametrize("token", ["", "short", TOKEN.upper(), TOKEN + "0", "../" + TOKEN])
def test_apart_a_page_without_a_token_is_on_its_own(token: str) -> None:
    visitors = Visitors(apart=True)
    visitors.enter("page", token)
    visitors.enter("other", token)
    assert visitors.organization("page") == visitors.organization("page") != visitors.organization("other")


def test_apart_a_program_without_a_session_never_meets_itself() -> None:
    visitors = Visitors(apart=True)
    assert visitors.organization(None) != visitors.organization(None)


def test_a_closed_page_is_forgotten() -> None:
    visitors = Visitors(apart=True)
    visitors.enter("page", TOKEN)
    before = visitors.organization("page")
    visitors.leave("page")
    assert visitors.organization("page") != before


def test_an_upload_is_a_finetune_of_its_visitor_alone(shelf: Shelf, finetunes: Finetunes) -> None:
    file = make_lora("my style").path
    kept = shelf.keep("visitor-1", file)
    assert kept.name == "my-style"
    assert [finetune.id for finetune in finetunes.list("visitor-1") if finetune.owner == "visitor-1"] == ["my-style"]
    assert shelf.find("visitor-1", "my-style") == kept
    with pytest.raises(NotFound, match="Known names: style, subject, overtrained"):
        shelf.find("visitor-2", "my-style")


def test_the_same_file_again_is_the_one_that_is_there(shelf: Shelf) -> None:
    first = shelf.keep(LOCAL, make_lora("mine").path)
    assert shelf.keep(LOCAL, make_lora("mine").path, file_name="other.safetensors") == first
    assert [ref.name for ref in shelf.list(LOCAL)].count("mine") == 1


def test_another_file_of_a_taken_name_gets_a_number(shelf: Shelf) -> None:
    shelf.keep(LOCAL, make_lora("one").path, file_name="My LoRA.safetensors")
    second = shelf.keep(LOCAL, make_lora("two").path, file_name="my-lora.safetensors")
    bundled = shelf.keep(LOCAL, make_lora("three").path, file_name="style.safetensors")
    owner = shelf.keep(LOCAL, make_lora("four").path, file_name="official.safetensors")
    assert (second.name, bundled.name, owner.name) == ("my-lora-2", "style-2", "official-2")


def test_a_name_that_a_deleted_finetune_has_is_left_to_it(shelf: Shelf, finetunes: Finetunes) -> None:
    first = shelf.keep(LOCAL, make_lora("one").path, file_name="mine.safetensors")
    finetunes.remove(LOCAL, "mine")
    assert shelf.keep(LOCAL, make_lora("two").path, file_name="mine.safetensors").name == "mine-2"
    assert finetunes.restore(LOCAL, "mine").lora == first


def test_one_that_is_called_like_a_bundled_lora_is_chosen_by_its_full_name(shelf: Shelf, finetunes: Finetunes) -> None:
    finetunes.add_file(LOCAL, make_lora("mine").path, name="style", weights="pocket")
    assert shelf.find(LOCAL, "style") == find_lora("style")
    assert shelf.find(LOCAL, "local/style").sha256 == make_lora("mine").sha256
    assert [ref.name for ref in shelf.list(LOCAL)] == ["style", "subject", "overtrained", "local/style"]


def test_a_file_over_the_limit_is_not_kept(shelf: Shelf, finetunes: Finetunes) -> None:
    finetunes.max_bytes = 100
    with pytest.raises(InvalidInput, match="which is the limit here"):
        shelf.keep(LOCAL, make_lora("mine").path)


def test_a_shared_finetune_is_chosen_by_its_owner_and_name(shelf: Shelf, finetunes: Finetunes) -> None:
    finetunes.add_file("acme", make_lora("theirs").path, name="theirs", weights="pocket", trigger_phrase="sks")
    finetunes.grant("acme", "theirs", LOCAL)
    assert shelf.find(LOCAL, "acme/theirs").trigger_phrase == "sks"
