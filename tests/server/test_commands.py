"""`python -m lora_runtime keys|finetunes`, as a user types them; each also while a server runs on the same home."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lora_runtime.__main__ import app
from lora_runtime.catalogue import POCKET
from lora_runtime.settings import settings
from tests.api_server import run_server
from tests.drawing_backend import DrawingBackend
from tests.lora_files import make_adapter, write_diffusers


def run(*words: str) -> Result:
    return CliRunner().invoke(app, [*words])


@pytest.fixture
def lora(tmp_path: Path) -> str:
    return str(write_diffusers(tmp_path / "a.safetensors", make_adapter(POCKET, rank=2)))


def test_a_key_is_shown_once_works_and_can_be_revoked(home: Path) -> None:
    with run_server(DrawingBackend(), home) as server:
        created = run("keys", "create", "--organization", "acme", "--label", "laptop")
        assert created.exit_code == 0
        key = created.stdout.strip()
        assert server.ask("GET", "/v1/credits", key=key).status == 200
        assert server.ask("GET", "/v1/credits").status == 403
        listed = run("keys", "list").stdout
        assert "acme" in listed
        assert "laptop" in listed
        assert key not in listed
        key_id = listed.split()[0]
        assert run("keys", "revoke", key_id).exit_code == 0
        assert "revoked" in run("keys", "list", "--organization", "acme").stdout
        assert server.ask("GET", "/v1/credits", key=key).status == 403


def test_credits(home: Path) -> None:
    assert "no limit" in run("keys", "credits", "--organization", "acme").stdout
    assert "2.5 left" in run("keys", "credits", "--organization", "acme", "--add", "2.5").stdout
    assert "2 left" in run("keys", "credits", "--organization", "acme", "--add", "-0.5").stdout.replace("2.0", "2")
    bad = run("keys", "credits", "--organization", "acme", "--add", "much")
    assert (bad.exit_code, bad.stderr) == (1, "Error: Credits: 'much' is not a number. Write one such as 100.\n")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("KLEIN_LAB_WORKERS", "abc", "'abc' cannot be used. Set it to a whole number, or leave it out."),
        ("KLEIN_LAB_WORKERS", "0", "'0' cannot be used. Set it to 1 or more, or leave it out."),
        ("KLEIN_LAB_DEVICE", "gpu", "'gpu' cannot be used. Set it to 'auto', 'cpu', 'cuda' or 'mps', or leave it out."),
        ("KLEIN_LAB_COMPILE", "maybe", "'maybe' cannot be used. Set it to true or false, or leave it out."),
        ("PORT", "99999", "'99999' cannot be used. Set it to 65535 or less, or leave it out."),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    settings.cache_clear()
    refused = run("keys", "list")
    assert (refused.exit_code, refused.stderr) == (1, f"Error: {variable}: {said}\n")


def test_a_finetune_from_add_to_remove(home: Path, lora: str) -> None:
    added = run("finetunes", "add", lora, "--name", "mine", "--base", "pocket", "--trigger-phrase", "TOK")
    assert added.stdout == "mine is served by /v1/flux-2-klein-pocket-finetuned.\n"
    with run_server(DrawingBackend(), home) as server:
        body = {"prompt": "TOK", "finetune_id": "mine", "width": 64, "height": 64}
        accepted = server.ask("POST", "/v1/flux-2-klein-pocket-finetuned", body)
        assert server.wait(accepted.json["polling_url"])["status"] == "Ready"
    listed = run("finetunes", "list").stdout.splitlines()
    assert listed[0].split() == ["mine", "pocket", "-", "Owned"]
    assert len(listed) == 7
    shown = run("finetunes", "show", "mine").stdout
    assert "trigger phrase  TOK" in shown
    assert (
        "127.0.0.1:7860/v1/flux-2-klein-pocket-finetuned"
        in run("finetunes", "show", "mine", "--example", "curl").stdout
    )
    assert "import os, time, requests" in run("finetunes", "show", "mine", "--example", "python").stdout
    assert (
        "pocket-base-finetuned; trigger phrase: none"
        in run("finetunes", "edit", "mine", "--base", "pocket-base", "--trigger-phrase", "").stdout
    )
    assert "recommended strength: 0.75." in run("finetunes", "edit", "mine", "--strength", "0.75").stdout
    assert '"finetune_strength": 0.75' in run("finetunes", "show", "mine", "--example", "curl").stdout
    assert run("finetunes", "grant", "mine", "--to", "acme").stdout == "acme calls it local/mine.\n"
    assert "local/mine" in run("finetunes", "list", "--organization", "acme").stdout
    assert run("finetunes", "revoke", "mine", "--to", "acme").exit_code == 0
    assert "local/mine" not in run("finetunes", "list", "--organization", "acme").stdout
    assert "mine was deleted." in run("finetunes", "remove", "mine").stdout
    assert "pocket-base-finetuned again" in run("finetunes", "restore", "mine").stdout
    assert run("finetunes", "remove", "mine").exit_code == 0
    assert len(run("finetunes", "list").stdout.splitlines()) == 6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["finetunes", "add", "LORA", "--name", "My Lora", "--base", "pocket"], "Lowercase letters"),
        (["finetunes", "add", "LORA", "--name", "x", "--base", "klein-4b"], "Choose pocket"),
        (
            ["finetunes", "add", "LORA", "--name", "x", "--base", "klein-4b", "--precision", "bf16"],
            "only for klein-9b-kv",
        ),
        (["finetunes", "add", "nothing.safetensors", "--name", "x", "--base", "pocket"], "There is no file"),
        (["finetunes", "show", "nothing"], "was not found"),
        (["finetunes", "show", "official/style", "--example", "perl"], "neither curl nor python"),
        (["finetunes", "remove", "official/style"], "belongs to official"),
        (["keys", "create", "--organization", "Acme Inc"], "not an organization id"),
        (["keys", "create", "--organization", "official"], "reserved"),
        (["keys", "revoke", "key-0"], "There is no key"),
    ],
)
def test_each_mistake_is_one_sentence(lora: str, words: list[str], says: str) -> None:
    result = run(*(lora if word == "LORA" else word for word in words))
    assert result.exit_code == 1
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
