"""A key is wrapper + module + part: whatever words stand around a module's name, it is found, and no other is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_runtime.lora.module_names import MODULES, TEXT_ENCODER, read_name

BLOCKS = {
    "double": (("transformer_blocks", "double_blocks"), 8),
    "single": (("single_transformer_blocks", "single_blocks"), 24),
}
DOTTED = {  # a name of each module with the dots of its own dialect
    "double": ["attn.to_q", "attn.to_out.0", "attn.add_k_proj", "ff.linear_in", "ff_context.linear_out", "img_attn.qkv",
               "txt_mlp.2", "txt_attn.proj", "attn.to_qkv", "img_attn.qkv.1"],
    "single": ["attn.to_qkv_mlp_proj", "attn.to_out", "linear1", "linear2"],
    "top": ["x_embedder", "img_in", "proj_out", "final_layer.linear", "final_layer.adaLN_modulation.1",
            "norm_out.linear",
            "time_guidance_embed.timestep_embedder.linear_1", "single_stream_modulation.lin"],
}  # fmt: skip
WRAPPERS = ("pipe", "dit", "transformer", "model", "base_model.model", "diffusion_model", "unet", "ema", "net",
            "denoiser",
            "flux2", "_orig_mod", "module", "_fsdp_wrapped_module", "student", "generator.core")  # fmt: skip
KOHYA = ("lora_unet_", "lora_unet__", "lora_transformer_", "lora_dit_", "lycoris_", "lora_")
INNER = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
ADAPTERS = ("default", "default_0", "lora_1", "my_style", "A", "7")


@st.composite
def modules(draw: st.DrawFn) -> tuple[str, tuple[str, ...]]:
    """A module's dotted name, and the modules of diffusers that it stands for."""
    kind = draw(st.sampled_from(sorted(DOTTED)))
    name = draw(st.sampled_from(DOTTED[kind]))
    targets = MODULES[kind][name.replace(".", "_").lower()]
    if kind == "top":
        return name, targets
    spellings, count = BLOCKS[kind]
    index = draw(st.integers(0, count - 1))
    block = f"{draw(st.sampled_from(spellings))}.{index}"
    return f"{block}.{name}", tuple(f"{spellings[0]}.{index}.{target}" for target in targets)


@st.composite
def low_rank_parts(draw: st.DrawFn) -> tuple[str, str, str]:
    """How a key ends, the part that it is, and the adapter that it belongs to."""
    side, part = draw(
        st.sampled_from([(".lora_A", "A"), (".lora_B", "B"), (".lora_down", "A"), (".lora_up", "B"),
                         (".lora.down", "A"),
                         (".lora.up", "B"), (".lora_linear_layer.up", "B"), ("_lora.down", "A")])
    )  # fmt: skip
    adapter = draw(st.sampled_from((None, *ADAPTERS)))
    named = f".{adapter}" if adapter else ""
    return f"{side}{named}.weight", part, adapter or "default"


@given(
    module=modules(), part=low_rank_parts(), wrappers=st.lists(st.sampled_from(WRAPPERS), max_size=3), data=st.data()
)
def test_dotted_names_lose_any_wrapper(
    module: tuple[str, tuple[str, ...]], part: tuple[str, str, str], wrappers: list[str], data: st.DataObject
) -> None:
    name, targets = module
    words = name.split(".")
    if data.draw(st.booleans()):
        words.insert(data.draw(st.integers(0, len(words))), data.draw(st.sampled_from(INNER)))
    ending, side, adapter = part
    found = read_name(".".join((*wrappers, *words)) + "_" * data.draw(st.integers(0, 1)) + ending)
    assert found is not None
    assert (found.place.targets, found.part, found.adapter) == (targets, side, adapter)


@given(
    module=modules(),
    prefix=st.sampled_from(KOHYA),
    ending=st.sampled_from([".lora_down.weight", "_.lora_down.weight", ".lora_A.weight", ".alpha", "_.alpha"]),
)
def test_underscored_names_lose_kohyas_prefix(module: tuple[str, tuple[str, ...]], prefix: str, ending: str) -> None:
    name, targets = module
    found = read_name(prefix + name.replace(".", "_") + ending)
    assert found is not None
    assert (found.place.targets, found.part) == (targets, "alpha" if "alpha" in ending else "A")
    assert found.adapter == (None if "alpha" in ending else "default")


@given(module=modules(), index=st.integers(0, 3))
def test_dots_and_underscores_may_be_mixed(module: tuple[str, tuple[str, ...]], index: int) -> None:
    """A converter turned some underscores into dots and left the others."""
    name, targets = module
    words = name.split(".")
    kept = 2 if "blocks" in words[0] else min(index, len(words) - 1)
    mixed = ".".join([*words[:kept], "_".join(words[kept:])])
    found = read_name(f"diffusion_model.{mixed}.lora_B.weight")
    assert found is not None
    assert found.place.targets == targets


@pytest.mark.parametrize(
    "key",
    [
        "vae.decoder.proj_out.lora_A.weight",
        "controlnet.transformer_blocks.0.attn.to_q.lora_A.weight",
        "transformer_2.transformer_blocks.0.attn.to_q.lora_A.weight",
        "temporal_transformer_blocks.0.attn.to_q.lora_A.weight",
        "txt_mode_blocks.0.attn.to_q.lora_A.weight",
        "single_transformer_blocks.3.proj_out.lora_A.weight",
        "down_blocks.1.attentions.0.proj_out.lora_A.weight",
        "layers.0.norm_out.linear.lora_A.weight",
        "caption_proj_out.lora_A.weight",
        "transformer_blocks.0.attn.to_q.lora_B.bias",
        "transformer_blocks.0.attn.to_q.lora_magnitude_vector.default.weight",
        "transformer_blocks.0.attn.to_q.weight",
        "transformer_blocks.0.norm1.linear.lora_A.weight",
        "transformer_blocks.99999.attn.to_q.lora_A.weight",
    ],
)
def test_what_is_no_layer_of_the_transformer(key: str) -> None:
    assert read_name(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "lora_te1.text_model.encoder.layers.8.mlp.fc1.lora_A.weight",
        "lora_te_layers_0_mlp_down_proj.lora_down.weight",
        "lora_prior_te_text_model_encoder_layers_0_mlp_fc1.alpha",
        "text_encoder.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "text_encoders.qwen3_4b.transformer.model.layers.0.input_layernorm.diff",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
        "lora_qwen3_layers_0_mlp_up_proj.lora_down.weight",
        "qwen_2_5_vl_7b.model.layers.0.mlp.up_proj.lora_A.weight",
        "te2.model.layers.0.mlp.up_proj.lora_down.weight",
        "clip_l.text_projection.lora_A.weight",
        "t5xxl.encoder.block.3.layer.1.DenseReluDense.wi.lora_up.weight",
        "model.layers.12.self_attn.k_proj.lora_B.weight",
        "base_model.model.model.layers.3.mlp.gate_proj.lora_A.weight",
        "text_encoder.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "cond_stage_model.transformer.lora_A.weight",
        "language_model.model.layers.0.post_attention_layernorm.diff",
    ],
)
def test_text_encoders_in_any_spelling(key: str) -> None:
    assert TEXT_ENCODER.search(key)


@given(module=modules(), wrappers=st.lists(st.sampled_from(WRAPPERS), max_size=3))
def test_the_transformer_is_no_text_encoder(module: tuple[str, tuple[str, ...]], wrappers: list[str]) -> None:
    dotted = ".".join((*wrappers, module[0]))
    assert not TEXT_ENCODER.search(f"{dotted}.lora_A.weight")
    assert not TEXT_ENCODER.search(f"lora_unet_{dotted.replace('.', '_')}.lora_down.weight")
