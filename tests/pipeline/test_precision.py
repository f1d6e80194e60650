"""FP8: what is rounded, how far, and that the strength laws hold on top of it."""

from decimal import Decimal
from pathlib import Path

import pytest
import torch
from diffusers.quantizers.bfl.utils import BFLFP8RLinear

from evaluation.axes import Target
from evaluation.identity import identity
from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import POCKET, find_weights
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.batch import Model, render_batch
from lora_runtime.pipeline.find import find_checkpoint
from lora_runtime.pipeline.load import load_pipeline
from lora_runtime.pipeline.precision import (
    BLOCKS,
    describe_precision,
    is_fp8,
    precisions,
    round_layer,
    round_to_fp8,
    widen_on_cpu,
)
from lora_runtime.values import LoraRef, Precision
from tests.lora_files import make_adapter, write_diffusers
from tests.pocket_model import psnr, render, request

CPU = torch.device("cpu")
STRENGTHS = [Decimal(text) for text in ("0", "0.35", "1", "-0.5")]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> LoraRef:
    path = tmp_path_factory.mktemp("loras") / "one.safetensors"
    return find_lora(str(write_diffusers(path, make_adapter(POCKET, size=0.6))))


def load(precision: Precision) -> Model:
    weights = find_weights("pocket")
    pipeline = load_pipeline(weights, precision, find_checkpoint(weights), CPU)
    return Model(pipeline, weights=weights, precision=precision, adapter_cache_bytes=0)


def test_exactly_the_blocks_linear_layers_are_rounded() -> None:
    fp8, bf16 = load("fp8").pipeline.transformer, load("bf16").pipeline.transformer
    assert is_fp8(fp8)
    assert not is_fp8(bf16)
    layers = dict(bf16.named_modules())
    rounded = {path: layer for path, layer in fp8.named_modules() if isinstance(layer, BFLFP8RLinear)}
    assert rounded.keys() == {
        path for path, layer in layers.items() if isinstance(layer, torch.nn.Linear) and path.startswith(BLOCKS)
    }
    assert len(rounded) == 12 * POCKET.double_blocks + 2 * POCKET.single_blocks
    for path, layer in rounded.items():
        exact = layers[path].weight.float()
        assert layer.weight.dtype == torch.float8_e4m3fn
        assert layer.weight_scale.shape == (exact.shape[0],)
        error = (layer.weight.float() * layer.weight_scale[:, None] - exact).abs()
        # E4M3 has 3 bits of mantissa: half a step is 1/16 of a normal number, 2^-10 of scale for a subnormal one.
        assert (error <= (exact.abs() / 16).maximum(layer.weight_scale[:, None] * 2**-10) + 1e-9).all()
    assert dict(fp8.named_parameters())["x_embedder.weight"].dtype == torch.bfloat16


def test_fp8_on_a_cpu_is_bf16_with_rounded_weights_lora_included(lora: LoraRef) -> None:
    fp8, bf16 = load("fp8"), load("bf16")
    layers = dict(bf16.pipeline.transformer.named_modules())
    for path, layer in fp8.pipeline.transformer.named_modules():
        if isinstance(layer, BFLFP8RLinear):
            layers[path].weight.copy_(layer.weight.float() * layer.weight_scale[:, None])
    requests = [request(lora, strength) for strength in STRENGTHS]
    pictures = [list(render_batch(model, requests, on_step=lambda _step, _steps: None)) for model in (fp8, bf16)]
    for ours, theirs in zip(*pictures, strict=True):
        assert ours.tobytes() == theirs.tobytes()  # type: ignore[union-attr]


def test_widening_on_a_cpu_gives_every_number_as_torch_does() -> None:
    """All bit patterns but NaN, at scales small and large; two pieces and a part of one."""
    numbers = torch.tensor([byte for byte in range(256) if byte & 0x7F != 0x7F], dtype=torch.uint8)
    rows = 2 * 2**19 // len(numbers) + 3
    layer = round_layer(torch.nn.Linear(len(numbers), rows, bias=False))
    layer.weight = torch.nn.Parameter(numbers.view(torch.float8_e4m3fn).repeat(rows, 1), requires_grad=False)
    layer.weight_scale = torch.logspace(-6, 1, rows)
    inputs = torch.eye(len(numbers), dtype=torch.bfloat16)
    expected = layer(inputs)
    widen_on_cpu(layer)
    assert torch.equal(layer(inputs), expected)
    layer.weight.view(torch.uint8)[5, 7] = 0xFF
    with pytest.raises(ValueError, match="hold NaN"):
        widen_on_cpu(layer)


def test_strength_laws_hold_on_fp8(local_backend: LocalBackend, lora: LoraRef) -> None:
    *batch, base = render(
        local_backend,
        *(request(lora, strength, precision="fp8") for strength in STRENGTHS),
        request(precision="fp8"),
    )
    assert (batch[0] == base).all()
    for image, strength in zip(batch, STRENGTHS, strict=True):
        (alone,) = render(local_backend, request(lora, strength, precision="fp8"))
        assert psnr(image, alone) >= 45
        assert strength == 0 or not (image == base).all()


def test_attach_and_detach_leave_the_rounded_weights_alone(lora: LoraRef) -> None:
    model = load("fp8")

    def read() -> dict[str, torch.Tensor]:
        state = model.pipeline.transformer.state_dict()  # PEFT keeps its empty wrapper around a layer
        return {name.replace("base_layer.", ""): tensor.clone() for name, tensor in state.items()}

    before = read()
    model.adapters.detach(model.adapters.attach(lora))
    for _ in range(2):
        after = read()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)) for name in before)
        round_to_fp8(model.pipeline.transformer)  # a second time changes nothing


def test_fp8_and_bf16_are_near_but_never_the_same_cell(local_backend: LocalBackend, lora: LoraRef) -> None:
    fp8, bf16 = (request(lora, "0.7", precision=precision) for precision in ("fp8", "bf16"))
    at = Target(backend="local", weights="pocket", precision="fp8", digest="d", steps=4, guidance=1.0)
    assert identity(fp8, at) != identity(bf16, at)
    first, second = render(local_backend, fp8, bf16)
    assert 20 < psnr(first, second) < 90


def test_every_local_model_offers_fp8_after_its_default(local_backend: LocalBackend, tmp_path: Path) -> None:
    for weights in ("pocket", "pocket-base", "klein-4b", "klein-9b-kv"):
        offered = [status.precision for status in local_backend.models() if status.weights == weights]
        assert offered[1] == "fp8", weights
    assert precisions(find_weights("klein-4b"), torch.device("mps")) == ("bf16",)
    assert describe_precision("fp8", CPU) == "fp8 weights, bf16 arithmetic"
    assert describe_precision("fp32", CPU) == "fp32"
