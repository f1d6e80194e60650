"""The strength laws: what is written on a cell is what acted on it."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline

from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import POCKET, find_weights
from lora_runtime.errors import LoraUnreadable
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.batch import Model
from lora_runtime.pipeline.find import find_checkpoint
from lora_runtime.pipeline.load import load_pipeline
from lora_runtime.values import Failed, LoraRef, Precision, Rendered, RenderRequest
from tests.lora_files import make_adapter, write_bfl, write_diffusers, write_kohya

STRENGTHS = [Decimal(text) for text in ("0", "0.35", "0.7", "1", "1.2", "-0.5")]


def request(lora: LoraRef | None = None, strength: str | Decimal = "0", **changes: object) -> RenderRequest:
    fields: dict[str, object] = {
        "weights": "pocket", "precision": "bf16", "prompt": "a red cat in the meadow", "seed": 7,
        "width": 64, "height": 64, "steps": 4, "guidance": 1.0, "lora": lora, "strength": Decimal(strength),
    } | changes  # fmt: skip
    return RenderRequest(**fields)  # type: ignore[arg-type]


def render(backend: LocalBackend, *requests: RenderRequest) -> list[np.ndarray]:
    images: dict[int, np.ndarray] = {}
    for event in backend.render(requests):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Rendered):
            images[event.index] = np.asarray(event.image)
    return [images[index] for index in range(len(requests))]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean())
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoraRef]:
    folder = tmp_path_factory.mktemp("loras")
    one, two = make_adapter(POCKET, size=0.6), make_adapter(POCKET, rank=2, seed=1, size=0.6)
    paths = {
        "one": write_diffusers(folder / "one.safetensors", one),
        "bfl": write_bfl(folder / "bfl.safetensors", one),
        "kohya": write_kohya(folder / "kohya.safetensors", one, alpha_over_rank=0.5),
        "two": write_bfl(folder / "two.safetensors", two),
    }
    return {name: find_lora(str(path)) for name, path in paths.items()}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_strength_zero_is_the_base_bit_for_bit(
    local_backend: LocalBackend, loras: dict[str, LoraRef], precision: Precision
) -> None:
    asked = ((loras["one"], "0"), (loras["one"], "1"), (None, "0"))
    zero, one, base = render(local_backend, *(request(lora, at, precision=precision) for lora, at in asked))
    (alone,) = render(local_backend, request(precision=precision))
    assert (zero == base).all()
    assert psnr(zero, alone) > 80  # another batch size may round another way in fp32
    assert not (one == base).all()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_batch_equals_its_images_one_by_one(
    local_backend: LocalBackend, loras: dict[str, LoraRef], precision: Precision
) -> None:
    requests = [request(loras["one"], strength, precision=precision) for strength in STRENGTHS]
    together = render(local_backend, *requests)
    for image, single in zip(together, requests, strict=True):
        (alone,) = render(local_backend, single)
        assert psnr(image, alone) > (50 if precision == "bf16" else 80)


def test_neighbouring_strengths_differ(local_backend: LocalBackend, loras: dict[str, LoraRef]) -> None:
    images = render(local_backend, *(request(loras["one"], strength) for strength in STRENGTHS))
    for index, image in enumerate(images):
        assert all(not (image == other).all() for other in images[index + 1 :])


@pytest.mark.parametrize("spelling", ["bfl", "kohya"])
def test_each_spelling_gives_the_same_pixels(
    local_backend: LocalBackend, loras: dict[str, LoraRef], spelling: str
) -> None:
    expected = render(local_backend, *(request(loras["one"], strength) for strength in STRENGTHS))
    images = render(local_backend, *(request(loras[spelling], strength) for strength in STRENGTHS))
    assert all((image == other).all() for image, other in zip(images, expected, strict=True))


def test_two_loras_in_one_batch_do_not_touch_each_others_rows(
    local_backend: LocalBackend, loras: dict[str, LoraRef]
) -> None:
    requests = [
        request(loras["one"], "0.7"),
        request(loras["two"], "1.2"),
        request(None),
        request(loras["two"], "0.3", seed=8, prompt="a blue fox"),
        request(loras["one"], "1", seed=8),
    ]
    mixed = render(local_backend, *requests)
    for image, single in zip(mixed, requests, strict=True):
        (alone,) = render(local_backend, single)
        assert psnr(image, alone) > 50


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_equals_the_diffusers_loop(
    local_backend: LocalBackend, loras: dict[str, LoraRef], precision: Precision
) -> None:
    weights = find_weights("pocket")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    pipeline = Flux2KleinPipeline.from_pretrained(find_checkpoint(weights), dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(loras["kohya"].path), adapter_name="reference_adapter")
    ours = render(local_backend, *(request(loras["kohya"], strength, precision=precision) for strength in STRENGTHS))
    for image, strength in zip(ours, STRENGTHS, strict=True):
        pipeline.set_adapters(["reference_adapter"], [float(strength)])
        reference = pipeline(
            prompt="a red cat in the meadow",
            width=64,
            height=64,
            num_inference_steps=4,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(7),
            max_sequence_length=weights.max_sequence_length,
            text_encoder_out_layers=weights.text_encoder_out_layers,
        ).images[0]
        assert psnr(image, np.asarray(reference)) >= 45


@pytest.fixture
def model() -> Model:
    weights = find_weights("pocket")
    pipeline = load_pipeline(weights, "fp32", find_checkpoint(weights), torch.device("cpu"))
    return Model(pipeline, weights=weights, precision="fp32", adapter_cache_bytes=0)


def predict(model: Model) -> torch.Tensor:
    transformer = model.pipeline.transformer
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, transformer.config.in_channels, generator=generator)
    with torch.inference_mode():
        output: torch.Tensor = transformer(
            hidden_states=latents,
            timestep=torch.tensor([0.5, 0.5]),
            encoder_hidden_states=model.encode(["a cat", "a fox"]),
            txt_ids=torch.zeros(2, model.weights.max_sequence_length, 4, dtype=torch.long),
            img_ids=torch.zeros(2, 16, 4, dtype=torch.long),
            return_dict=False,
        )[0]
    return output


def test_detach_restores_the_base_bit_for_bit(model: Model, loras: dict[str, LoraRef]) -> None:
    before = predict(model)
    name = model.adapters.attach(loras["one"])
    with model.adapters.strengths({name: [1.0, 0.0]}):
        during = predict(model)
    with model.adapters.strengths({}):
        assert torch.equal(predict(model), before)
    model.adapters.detach(name)
    assert torch.equal(predict(model), before)
    assert not torch.equal(during[0], before[0])
    assert torch.equal(during[1], before[1])


def test_adapters_over_the_cache_size_leave_unless_in_use(model: Model, loras: dict[str, LoraRef]) -> None:
    first, second = (model.adapters.attach(loras[name]) for name in ("one", "two"))
    model.adapters.shrink(keep=[second])
    assert set(model.pipeline.transformer.peft_config) == {second}
    assert model.adapters.attach(loras["one"]) == first


def test_key_order_does_not_matter(model: Model, loras: dict[str, LoraRef], tmp_path: Path) -> None:
    adapter = make_adapter(POCKET, size=0.6)
    backwards = dict(reversed(adapter.items()))
    outputs = []
    for index, tensors in enumerate((adapter, backwards)):
        path = write_diffusers(tmp_path / f"{index}.safetensors", tensors)
        name = model.adapters.attach(find_lora(str(path)))
        with model.adapters.strengths({name: [1.0, 1.0]}):
            outputs.append(predict(model))
        if index == 0:
            model.adapters.detach(name)
    assert torch.equal(*outputs)


def test_a_file_that_changed_after_it_was_chosen_is_refused(model: Model, tmp_path: Path) -> None:
    path = write_diffusers(tmp_path / "a.safetensors", make_adapter(POCKET))
    chosen = find_lora(str(path))
    write_diffusers(path, make_adapter(POCKET, seed=5))
    with pytest.raises(LoraUnreadable, match="changed after it was chosen"):
        model.adapters.attach(chosen)
