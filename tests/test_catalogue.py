"""The catalogue against the page it was taken from, and against diffusers' own count."""

import pytest
import torch
from diffusers import Flux2Transformer2DModel

from lora_runtime.catalogue import ENDPOINTS, WEIGHTS, find_weights
from lora_runtime.errors import NotFound
from lora_runtime.lora.sizes import find_size

PAGE = {  # docs.bfl.ai/flux_2/flux2_lora_inference, "Available Endpoints"
    "/v1/flux-2-klein-4b-finetuned": "fp8",
    "/v1/flux-2-klein-9b-finetuned": "fp8",
    "/v1/flux-2-klein-9b-kv-finetuned": "fp8",
    "/v1/flux-2-klein-9b-kv-bf16-finetuned": "bf16",
    "/v1/flux-2-klein-base-4b-finetuned": "fp8",
    "/v1/flux-2-klein-base-9b-finetuned": "fp8",
}


def test_endpoints_are_those_of_the_page() -> None:
    offered = {endpoint.path: endpoint.precision for endpoint in ENDPOINTS.values() if endpoint.finetuned}
    ours = {"/v1/flux-2-klein-pocket-finetuned": None, "/v1/flux-2-klein-pocket-base-finetuned": None}
    assert offered == PAGE | ours


def test_every_weights_has_an_endpoint_with_and_without_a_lora() -> None:
    assert {endpoint.weights for endpoint in ENDPOINTS.values() if endpoint.finetuned} == set(WEIGHTS)
    assert {endpoint.weights for endpoint in ENDPOINTS.values() if not endpoint.finetuned} == set(WEIGHTS)
    pairs = [(endpoint.weights, endpoint.precision) for endpoint in ENDPOINTS.values() if endpoint.finetuned]
    assert len(set(pairs)) == len(pairs)


def test_every_record_is_consistent() -> None:
    for name, weights in WEIGHTS.items():
        assert weights.name == name
        assert weights.sizes[0] <= weights.default_size <= weights.sizes[1]
        assert weights.distilled == (weights.guidance == 1.0) == (weights.steps == 4)
        if weights.trained_from is not None:
            assert WEIGHTS[weights.trained_from].shape == weights.shape
            assert not WEIGHTS[weights.trained_from].distilled


def test_unknown_weights_are_told_what_there_is() -> None:
    with pytest.raises(NotFound, match="klein-9b-kv"):
        find_weights("flux-1")


@pytest.mark.parametrize(("name", "billions"), [("klein-4b", 3.876), ("klein-9b", 9.079), ("pocket", None)])
def test_shapes_are_those_of_the_real_architecture(name: str, billions: float | None) -> None:
    shape = WEIGHTS[name].shape
    head = 64 if name == "pocket" else 128
    with torch.device("meta"):
        model = Flux2Transformer2DModel(
            in_channels=shape.latent,
            num_layers=shape.double_blocks,
            num_single_layers=shape.single_blocks,
            attention_head_dim=head,
            num_attention_heads=shape.hidden // head,
            joint_attention_dim=shape.text,
            axes_dims_rope=(head // 4,) * 4,
            guidance_embeds=False,
        )
    if billions is not None:
        assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)
    linears = {path: module for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for path, linear in linears.items():
        assert find_size(path, shape) == (linear.out_features, linear.in_features), path
