"""Files that travel: what is kept on a machine is what was meant, or nothing; and what runs there, without Ray."""

import json
import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from PIL import Image

from lora_runtime.backends.crew import Member, merge_statuses, read_code, say_left_out, share_out
from lora_runtime.backends.parcels import Shelf, list_items, pack
from lora_runtime.backends.renderer import Renderer
from lora_runtime.errors import InvalidInput, LoraUnreadable, NotFound
from lora_runtime.lora.library import find_lora, read_lora
from lora_runtime.references import read_reference
from lora_runtime.values import Failed, ModelStatus, Progress, Rendered, RenderRequest


@pytest.fixture
def request_with_files(tmp_path: Path) -> RenderRequest:
    """A request with a LoRA in a folder of PEFT's, whose settings belong to it, and a reference image."""
    folder = tmp_path / "asker" / "mine"
    folder.mkdir(parents=True)
    shutil.copy(find_lora("style").path or "", folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 4}))
    Image.new("RGB", (64, 64), "red").save(tmp_path / "asker" / "ref.png")
    return RenderRequest(
        weights="pocket", precision="bf16", prompt="a cat", seed=1, width=64, height=64, steps=4, guidance=1.0,
        lora=read_lora(folder / "adapter_model.safetensors"), strength=Decimal(1),
        references=(read_reference(tmp_path / "asker" / "ref.png"),),
    )  # fmt: skip


def test_what_arrived_is_the_same_lora_and_image(request_with_files: RenderRequest, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "node")
    with pytest.raises(NotFound, match="has not arrived"):
        shelf.localise(request_with_files)
    for item in list_items(request_with_files):
        assert shelf.find(item) is None
        assert shelf.keep(item, pack(item)) == shelf.find(item)
        shelf.keep(item, pack(item))  # another engine of the machine does the same
        shelf.keep(item, pack(item)).unlink()  # somebody tidies up
        assert shelf.find(item) is None
        assert shelf.keep(item, pack(item)).is_file()
    shutil.rmtree(tmp_path / "asker")
    there = shelf.localise(request_with_files)
    assert there.lora is not None
    assert there.lora.path is not None
    assert read_lora(there.lora.path).sha256 == request_with_files.lora.sha256  # type: ignore[union-attr]
    assert (there.lora.path.parent / "adapter_config.json").is_file()
    assert read_reference(there.references[0].path).sha256 == request_with_files.references[0].sha256
    with pytest.raises(NotFound, match="has gone"):
        pack(list_items(request_with_files)[0])


def test_what_changed_on_its_way_is_not_kept(request_with_files: RenderRequest, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "node")
    lora, image = list_items(request_with_files)
    with pytest.raises(LoraUnreadable, match="changed after it was chosen"):
        shelf.keep(lora, pack(find_lora("subject")))
    with pytest.raises(InvalidInput, match="changed after it was chosen"):
        shelf.keep(image, {"ref.png": b"other"})
    assert shelf.find(lora) is shelf.find(image) is None
    assert not [path for path in (tmp_path / "node").rglob("*") if path.is_file()]


def test_a_renderer_says_what_it_lacks_and_renders_what_came(request_with_files: RenderRequest) -> None:
    renderer = Renderer()
    first, *rest = renderer.render("a", [request_with_files, replace(request_with_files, lora=None, references=())], {})
    assert first.rows >= 1
    assert first.lacks == (0,)
    ended = [event for said in rest for event in said.events if not isinstance(event, Progress)]
    assert [event.index for event in ended] == [1]
    parcels = {item: (lambda item=item: pack(item)) for item in list_items(request_with_files)}
    wrong = replace(request_with_files, lora=find_lora("subject"), references=())
    parcels[wrong.lora] = lambda: pack(find_lora("style"))  # type: ignore[index]
    first, *rest = renderer.render("b", [wrong, request_with_files], parcels)
    assert not first.lacks
    assert [type(event.error) for event in first.events if isinstance(event, Failed)] == [LoraUnreadable]
    ended = [event for said in rest for event in said.events if not isinstance(event, Progress)]
    assert [(type(event), event.index) for event in ended] == [(Rendered, 1)]


def make_member(name: str, digests: dict[str, str], code: str = "") -> Member:
    statuses = tuple(
        ModelStatus(
            weights=weights,
            precision="bf16",
            available=bool(digest),
            digest=digest,
            reason="" if digest else "Fetch it.",
        )
        for weights, digest in digests.items()
    )
    return Member(name=name, node=name, device="cpu", code=code or read_code(), pid=1, cache_bytes=1, statuses=statuses)


def test_engines_have_one_status_together() -> None:
    members = [
        make_member("a", {"pocket": "1", "klein-4b": "9"}),
        make_member("b", {"pocket": "1", "klein-4b": ""}),
        make_member("c", {"pocket": "2", "klein-4b": "9"}),
    ]
    pocket, klein = merge_statuses(members)
    assert (pocket.weights, pocket.digest, pocket.note) == (
        "pocket",
        "1",
        "2 engines; not on c: it has another checkpoint",
    )
    assert (klein.available, klein.digest, klein.note) == (True, "9", "2 engines; not on b: Fetch it.")
    assert merge_statuses(members[1:2])[1].reason == "Fetch it."


def test_other_code_and_missing_weights_are_left_out_with_a_sentence() -> None:
    assert say_left_out(make_member("a", {"pocket": "1"}), read_code()) == ""
    assert "another version" in say_left_out(make_member("a", {"pocket": "1"}, code="old"), read_code())
    assert "a can run no weights: Fetch it." in say_left_out(make_member("a", {"klein-4b": ""}), read_code())


@pytest.mark.parametrize(
    ("resources", "engines"),
    [
        ({"CPU": 1.0}, [(1, 0)]),
        ({"CPU": 20.0}, [(6, 0)] * 3),
        ({"CPU": 32.0, "GPU": 2.0}, [(16, 1)] * 2),
        ({"CPU": 2.0, "GPU": 4.0}, [(0, 1)] * 4),
        ({"object_store_memory": 5.0}, []),
    ],
)
def test_a_machine_has_an_engine_a_gpu_or_a_share_of_its_cores(
    resources: dict[str, float], engines: list[tuple[int, int]]
) -> None:
    assert [(share["CPU"], share["GPU"]) for share in share_out(resources)] == engines
