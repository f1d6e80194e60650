"""The registry keeps the Dashboard's rules."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import save_file

from lora_runtime.catalogue import KLEIN_4B, KLEIN_9B, POCKET, Shape
from lora_runtime.errors import (
    Conflict,
    InvalidInput,
    LoraMismatch,
    LoraUnreadable,
    NotAuthorized,
    NotFound,
)
from lora_runtime.registry.accounts import Accounts
from lora_runtime.registry.finetune import Finetune, Source
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.snippets import write_example
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from tests.lora_files import make_adapter, write_bfl, write_diffusers


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Finetunes]:
    database = Database(f"sqlite:///{tmp_path / 'lab.sqlite3'}")
    for organization in ("acme", "zenith"):
        Accounts(database).add_organization(organization)
    yield Finetunes(database, Blobs(tmp_path / "api"), max_bytes=50_000_000)
    database.close()


def write_lora(folder: Path, *, shape: Shape = POCKET, name: str = "a", seed: int = 0) -> Path:
    return write_diffusers(folder / f"{name}.safetensors", make_adapter(shape, rank=2, seed=seed))


def add(registry: Finetunes, folder: Path, organization: str = "acme", **fields: str | None) -> Finetune:
    fields = {"name": "my-lora", "weights": "pocket", **fields}
    return registry.add_file(organization, write_lora(folder), **fields)


def ids(registry: Finetunes, organization: str, source: Source | None = None) -> list[str]:
    return [finetune.id for finetune in registry.list(organization, source=source)]


def test_an_added_finetune_can_be_found_and_rendered(registry: Finetunes, tmp_path: Path) -> None:
    added = add(registry, tmp_path, trigger_phrase=" ohwx ")
    assert registry.find("acme", "my-lora") == added
    assert registry.find("acme", "acme/my-lora") == added
    assert (added.id, added.owner, added.source) == ("my-lora", "acme", Source.OWNED)
    assert (added.weights, added.precision, added.trigger_phrase) == ("pocket", None, "ohwx")
    assert added.endpoint.name == "flux-2-klein-pocket-finetuned"
    assert added.lora.path.read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    assert added.size_bytes == (tmp_path / "a.safetensors").stat().st_size
    assert not list((tmp_path / "api").glob(".*"))


@pytest.mark.parametrize("name", ["", "My-Lora", "a b", "a/b", "ü", "x" * 65, "../x", "a.b"])
def test_names_follow_the_dashboards_rule(registry: Finetunes, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="Lowercase letters, digits, hyphens, and underscores only"):
        add(registry, tmp_path, name=name)


def test_the_owner_of_the_bundled_finetunes_is_no_name(registry: Finetunes, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="whose the bundled finetunes are"):
        add(registry, tmp_path, name="official")


@pytest.mark.parametrize(
    ("shape", "weights", "precision", "endpoint"),
    [
        (KLEIN_4B, "klein-4b", None, "flux-2-klein-4b-finetuned"),
        (KLEIN_4B, "flux-2-klein-base-4b", "fp8", "flux-2-klein-base-4b-finetuned"),
        (KLEIN_9B, "klein-9b", "FP8", "flux-2-klein-9b-finetuned"),
        (KLEIN_9B, "klein-9b-kv", None, "flux-2-klein-9b-kv-finetuned"),
        (KLEIN_9B, "klein-9b-kv", "BF16", "flux-2-klein-9b-kv-bf16-finetuned"),
        (KLEIN_9B, "klein-base-9b", None, "flux-2-klein-base-9b-finetuned"),
        (POCKET, "pocket-base", None, "flux-2-klein-pocket-base-finetuned"),
    ],
)
def test_base_and_precision_choose_the_endpoint(
    registry: Finetunes, tmp_path: Path, shape: Shape, weights: str, precision: str | None, endpoint: str
) -> None:
    path = write_lora(tmp_path, shape=shape)
    added = registry.add_file("acme", path, name="x", weights=weights, precision=precision)
    assert added.endpoint.name == endpoint


@pytest.mark.parametrize(
    ("weights", "precision", "says"),
    [
        ("klein-4b", "bf16", "choose fp8. BF16 is only for klein-9b-kv"),
        ("klein-9b-kv", "fp32", "choose fp8 or bf16"),
        ("pocket", "bf16", "leave the precision out"),
    ],
)
def test_other_precisions_are_refused(
    registry: Finetunes, tmp_path: Path, weights: str, precision: str, says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        add(registry, tmp_path, weights=weights, precision=precision)


def test_a_file_must_fit_the_chosen_base(registry: Finetunes, tmp_path: Path) -> None:
    with pytest.raises(LoraMismatch, match=r"a\.safetensors.*Choose pocket"):
        add(registry, tmp_path, weights="klein-4b")
    with pytest.raises(NotFound, match="no weights named 'sdxl'"):
        add(registry, tmp_path, weights="sdxl")
    (tmp_path / "b.safetensors").write_bytes(b"no such thing")
    with pytest.raises(LoraUnreadable, match=r"b\.safetensors"):
        registry.add_file("acme", tmp_path / "b.safetensors", name="b", weights="pocket")
    assert ids(registry, "acme", Source.OWNED) == []
    assert list((tmp_path / "api").iterdir()) == []


def test_a_file_is_never_larger_than_the_limit(registry: Finetunes, tmp_path: Path) -> None:
    with registry.upload("big.safetensors") as upload:
        for _ in range(47):
            upload.write(bytes(1 << 20))
        with pytest.raises(InvalidInput, match=r"big\.safetensors is larger than 48 MiB"):
            upload.write(bytes(1 << 20))
    assert list((tmp_path / "api").iterdir()) == []


def test_the_same_file_is_stored_once(registry: Finetunes, tmp_path: Path) -> None:
    first = add(registry, tmp_path, name="first")
    second = add(registry, tmp_path, "zenith", name="second")
    assert first.lora.path == second.lora.path
    assert first.lora.sha256 == second.lora.sha256


def test_a_name_is_taken_once_in_an_organization(registry: Finetunes, tmp_path: Path) -> None:
    add(registry, tmp_path)
    with pytest.raises(Conflict, match="already has a finetune named 'my-lora'"):
        add(registry, tmp_path)
    add(registry, tmp_path, "zenith")


def test_a_recommended_strength_is_kept_exactly_shared_and_cleared(registry: Finetunes, tmp_path: Path) -> None:
    assert add(registry, tmp_path).recommended_strength is None
    for text in ("0", "-1", "2.5", "much"):
        with pytest.raises(InvalidInput, match="Recommended strength"):
            registry.edit("acme", "my-lora", recommended_strength=text)
    registry.edit("acme", "my-lora", recommended_strength="0.750")
    registry.edit("acme", "my-lora", trigger_phrase="sks")
    registry.grant("acme", "my-lora", "zenith")
    assert str(registry.find("zenith", "acme/my-lora").recommended_strength) == "0.75"
    for language in ("curl", "python"):
        assert '"finetune_strength": 0.75' in write_example(registry.find("acme", "my-lora"), "http://x", language)
    assert registry.edit("acme", "my-lora", recommended_strength="").recommended_strength is None
    assert '"finetune_strength": 1.0' in write_example(registry.find("acme", "my-lora"), "http://x", "curl")


def test_the_files_trigger_phrase_is_taken_unless_another_is_given(registry: Finetunes, tmp_path: Path) -> None:
    path = write_bfl(tmp_path / "t.safetensors", make_adapter(POCKET), metadata={"trigger_phrase": "TOK"})
    named = {name: {"name": name, "weights": "pocket"} for name in ("own", "other", "none")}
    assert registry.add_file("acme", path, **named["own"]).trigger_phrase == "TOK"
    assert registry.add_file("acme", path, **named["other"], trigger_phrase="sks").trigger_phrase == "sks"
    assert registry.add_file("acme", path, **named["none"], trigger_phrase="").trigger_phrase is None
    with pytest.raises(InvalidInput, match="Trigger phrase"):
        registry.edit("acme", "own", trigger_phrase="two\nlines")


def test_edit_changes_what_was_given(registry: Finetunes, tmp_path: Path) -> None:
    path = write_lora(tmp_path, shape=KLEIN_9B)
    registry.add_file("acme", path, name="x", weights="klein-9b-kv", precision="bf16", trigger_phrase="TOK")
    assert registry.edit("acme", "x", trigger_phrase="sks").trigger_phrase == "sks"
    assert registry.edit("acme", "x").precision == "bf16"
    assert registry.edit("acme", "x", precision="fp8").endpoint.name == "flux-2-klein-9b-kv-finetuned"
    assert registry.edit("acme", "x", weights="klein-9b").endpoint.name == "flux-2-klein-9b-finetuned"
    with pytest.raises(LoraMismatch):
        registry.edit("acme", "x", weights="klein-4b")
    with pytest.raises(InvalidInput, match="BF16 is only"):
        registry.edit("acme", "x", precision="bf16")
    assert registry.edit("acme", "x", trigger_phrase="").trigger_phrase is None


def test_a_grant_shares_and_a_revoke_takes_back(registry: Finetunes, tmp_path: Path) -> None:
    add(registry, tmp_path)
    for called in ("acme/my-lora", "acme/nothing", "nobody/my-lora", "my-lora"):
        with pytest.raises(NotFound, match="was not found among yours and those shared with you"):
            registry.find("zenith", called)
    assert registry.grant("acme", "my-lora", "zenith").granted_to == ("zenith",)
    assert registry.grant("acme", "my-lora", "zenith").granted_to == ("zenith",)
    shared = registry.find("zenith", "acme/my-lora")
    assert (shared.id, shared.source, shared.granted_to) == ("acme/my-lora", Source.THIRD_PARTY, ())
    assert ids(registry, "zenith", Source.THIRD_PARTY) == ["acme/my-lora"]
    for change in (registry.edit, registry.remove):
        with pytest.raises(NotAuthorized, match="belongs to acme"):
            change("zenith", "acme/my-lora")
    assert registry.revoke("acme", "my-lora", "zenith").granted_to == ()
    with pytest.raises(NotFound):
        registry.find("zenith", "acme/my-lora")
    with pytest.raises(NotFound, match="not shared with 'zenith'"):
        registry.revoke("acme", "my-lora", "zenith")
    with pytest.raises(InvalidInput, match="yours already"):
        registry.grant("acme", "my-lora", "acme")


def test_the_list_has_own_shared_and_official_ones_in_this_order(registry: Finetunes, tmp_path: Path) -> None:
    add(registry, tmp_path, "zenith", name="b")
    add(registry, tmp_path, "zenith", name="a")
    add(registry, tmp_path, "acme", name="c")
    registry.grant("acme", "c", "zenith")
    official = [f"official/{name}{base}" for name in ("style", "subject", "overtrained") for base in ("", "-base")]
    assert ids(registry, "zenith") == ["a", "b", "acme/c", *official]
    assert ids(registry, "zenith", Source.OWNED) == ["a", "b"]
    assert ids(registry, "nobody") == official


def test_official_ones_are_everybodys_and_nobody_can_change_them(registry: Finetunes) -> None:
    found = registry.find("nobody", "official/style-base")
    assert (found.source, found.weights, found.blob) == (Source.OFFICIAL, "pocket-base", None)
    with pytest.raises(NotAuthorized, match="belongs to official"):
        registry.remove("acme", "official/style")
    with pytest.raises(NotFound):
        registry.find("acme", "official/none")


def test_a_bare_name_is_ones_own_or_else_an_official_one(registry: Finetunes, tmp_path: Path) -> None:
    assert registry.find("acme", "style") == registry.find("acme", "official/style")
    assert registry.find("acme", "style-base").weights == "pocket-base"
    with pytest.raises(NotAuthorized, match="style belongs to official"):
        registry.remove("acme", "style")
    add(registry, tmp_path, "zenith", name="style")
    assert registry.find("zenith", "style").owner == "zenith"
    assert registry.find("acme", "style").owner == "official", "what others own is not taken for it"
    for name in ("zenith/style", "acme/style", "none"):
        with pytest.raises(NotFound):
            registry.find("acme", name)
    registry.remove("zenith", "style")
    assert registry.find("zenith", "style").owner == "official"


def test_a_deleted_one_is_gone_for_everybody_and_comes_back_with_its_grants(
    registry: Finetunes, tmp_path: Path
) -> None:
    before = add(registry, tmp_path, trigger_phrase="TOK")
    registry.grant("acme", "my-lora", "zenith")
    assert registry.remove("acme", "my-lora").id == "my-lora"
    assert ids(registry, "acme", Source.OWNED) == ids(registry, "zenith", Source.THIRD_PARTY) == []
    for organization, called in (("acme", "my-lora"), ("zenith", "acme/my-lora")):
        with pytest.raises(NotFound):
            registry.find(organization, called)
    for change in (registry.edit, registry.remove):
        with pytest.raises(NotFound):
            change("acme", "my-lora")
    (deleted,) = registry.list_deleted("acme")
    assert (deleted.id, deleted.granted_to, deleted.deleted is not None) == ("my-lora", ("zenith",), True)
    assert registry.list_deleted("zenith") == ()
    assert before.blob in registry.blobs(), "its file stays as long as it can be restored"
    with pytest.raises(NotFound, match="zenith has no deleted finetune 'acme/my-lora'"):
        registry.restore("zenith", "acme/my-lora")
    restored = registry.restore("acme", "acme/my-lora")
    assert (restored, restored.granted_to) == (registry.find("acme", "my-lora"), ("zenith",))
    assert (restored.trigger_phrase, restored.deleted) == ("TOK", None)
    assert registry.find("zenith", "acme/my-lora").lora.sha256 == before.lora.sha256
    with pytest.raises(NotFound, match="no deleted finetune 'my-lora' to restore"):
        registry.restore("acme", "my-lora")


def test_a_new_one_takes_the_place_of_a_deleted_one_of_its_name(registry: Finetunes, tmp_path: Path) -> None:
    add(registry, tmp_path)
    registry.grant("acme", "my-lora", "zenith")
    registry.remove("acme", "my-lora")
    again = registry.add_file("acme", write_lora(tmp_path, seed=1), name="my-lora", weights="pocket-base")
    assert (again.granted_to, again.weights) == ((), "pocket-base")
    assert registry.list_deleted("acme") == ()
    with pytest.raises(NotFound):
        registry.find("zenith", "acme/my-lora")
    with pytest.raises(NotFound):
        registry.restore("acme", "my-lora")


def test_a_purge_removes_for_good_what_was_deleted_long_enough_ago(registry: Finetunes, tmp_path: Path) -> None:
    for organization, name in (("acme", "early"), ("zenith", "early"), ("acme", "late"), ("acme", "kept")):
        add(registry, tmp_path, organization, name=name)
    registry.grant("acme", "early", "zenith")
    for organization in ("acme", "zenith"):
        registry.remove(organization, "early")
    between = registry.list_deleted("zenith")[0].deleted
    assert between is not None
    registry.remove("acme", "late")
    assert registry.purge(0.0) == 0
    assert registry.purge(between + 1e-6) == 2
    assert [finetune.name for finetune in registry.list_deleted("acme")] == ["late"]
    assert registry.list_deleted("zenith") == ()
    assert ids(registry, "acme", Source.OWNED) == ["kept"]
    with pytest.raises(NotFound):
        registry.restore("acme", "early")
    assert registry.restore("acme", "late").id == "late"


def test_of_two_that_add_the_same_name_at_once_one_is_told(registry: Finetunes, tmp_path: Path) -> None:
    add(registry, tmp_path)
    registry.remove("acme", "my-lora")
    path = write_lora(tmp_path)

    def try_add(_number: int) -> str:
        try:
            return registry.add_file("acme", path, name="my-lora", weights="pocket").id
        except Conflict as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(try_add, range(4)))
    assert said.count("my-lora") == 1
    assert sum("already has a finetune" in text for text in said) == 3
    assert ids(registry, "acme", Source.OWNED) == ["my-lora"]


def test_a_lora_that_changes_nothing_is_refused(registry: Finetunes, tmp_path: Path) -> None:
    adapter = {key: tensor * (not key.endswith("B")) for key, tensor in make_adapter(POCKET).items()}
    path = tmp_path / "zero.safetensors"
    save_file({f"transformer.{key[:-2]}.lora_{key[-1]}.weight": t.clone() for key, t in adapter.items()}, path)
    with pytest.raises(LoraUnreadable, match="change nothing"):
        registry.add_file("acme", path, name="zero", weights="pocket")
