"""Several adapters in a file are told apart and one is chosen; what changes nothing is left out, and said."""

import json
from pathlib import Path

import numpy as np
import pytest

from lora_runtime.errors import InvalidInput, LoraMismatch, LoraUnsupported
from lora_runtime.lora.check import check_file
from lora_runtime.lora.file import copy_file, read_file
from lora_runtime.lora.library import find_lora, path_of, report_of
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.registry.local import open_registry
from tests.header_files import Arrays, klein, lora, write

POCKET = klein(256, 2, 4)
Q = "transformer.transformer_blocks.0.attn.to_q"
NORM = "transformer.transformer_blocks.0.attn.norm_q"


def named(adapter: str, scale: float = 1.0) -> Arrays:
    parts = (f"lora_A.{adapter}.weight", f"lora_B.{adapter}.weight")
    return {
        key: array * np.float16(scale) for key, array in lora(POCKET, prefix="base_model.model.", parts=parts).items()
    }


def ema_twin() -> Arrays:
    return lora(POCKET) | lora(POCKET, prefix="ema.transformer.")


@pytest.mark.parametrize(
    ("arrays", "names"),
    [
        (named("default") | named("second"), ("default", "second")),
        (lora(POCKET) | lora(POCKET, parts=("lora_A.second.weight", "lora_B.second.weight")), ("default", "second")),
        (ema_twin(), ("transformer", "ema.transformer")),
        (lora(POCKET, prefix="") | lora(POCKET, prefix="ema."), ("bare", "ema")),
    ],
)
def test_two_adapters_are_named_and_one_is_chosen(tmp_path: Path, arrays: Arrays, names: tuple[str, str]) -> None:
    path = write(tmp_path / "a.safetensors", arrays)
    with pytest.raises(LoraUnsupported, match=rf"holds 2 adapters: {names[0]}, {names[1]}\. .*--adapter {names[0]}"):
        check_file(path)
    with pytest.raises(InvalidInput, match=f"has no adapter 'third'. It has: {names[0]}, {names[1]}"):
        check_file(path, adapter="third")
    reports = [check_file(path, adapter=name) for name in names]
    assert [len(report.layers) for report in reports] == [3, 3]
    assert len({report.file.sha256 for report in reports}) == 2


def test_adapters_on_different_modules_are_several_too(tmp_path: Path) -> None:
    one = lora({"transformer_blocks.0.attn.to_q": (256, 256)}, parts=("lora_A.face.weight", "lora_B.face.weight"))
    two = lora({"transformer_blocks.1.attn.to_q": (256, 256)}, parts=("lora_A.look.weight", "lora_B.look.weight"))
    path = write(tmp_path / "a.safetensors", one | two)
    with pytest.raises(LoraUnsupported, match="face, look"):
        check_file(path)
    assert [layer.module for layer in check_file(path, adapter="look").layers] == ["transformer_blocks.1.attn.to_q"]


def test_an_alpha_without_a_name_belongs_to_every_adapter(tmp_path: Path) -> None:
    alphas = {f"base_model.model.{name}.alpha": np.float32(0.5) for name in POCKET}
    path = write(tmp_path / "a.safetensors", named("one") | named("two") | {k: np.array(v) for k, v in alphas.items()})
    assert check_file(path, adapter="two").scales == (0.5,)


def test_one_adapter_needs_no_name_and_may_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", named("my_style"))
    whole = check_file(path)
    assert check_file(path, adapter="my_style").file.sha256 == whole.file.sha256
    with pytest.raises(InvalidInput, match="It has: my_style"):
        check_file(path, adapter="default")


def test_the_chosen_adapter_is_kept_alone_under_the_same_digest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", named("one") | named("two", 0.5), {"trigger_phrase": "ohwx"})
    chosen = find_lora(str(path), adapter="two")
    with open_registry() as finetunes:
        kept = finetunes.keep(LOCAL, report_of(chosen), ["kept"]).lora
    assert (kept.sha256, kept.adapter, kept.trigger_phrase) == (chosen.sha256, None, "ohwx")
    assert report_of(chosen).norms == report_of(kept).norms
    assert all(".two." in key for key in read_file(path_of(kept)).tensors)
    copy_file(report_of(chosen).file, tmp_path / "b.safetensors")
    assert read_file(tmp_path / "b.safetensors").sha256 == chosen.sha256
    assert (tmp_path / "b.safetensors").stat().st_size == report_of(chosen).file.size_bytes


IDLE: dict[str, Arrays] = {
    "differences of zero": {f"{NORM}.diff": np.zeros(64, np.float16), f"{NORM}.diff_b": np.zeros(64, np.float32)},
    "biases of zero": {f"{Q}.lora_B.bias": np.zeros(256, np.float16), f"{Q}.lora_A.bias": np.zeros(1, np.float16)},
    "a factor of one": {f"{Q}.scalar": np.array(1.0, np.float32)},
    "a norm's layer of zero": {
        f"{NORM}.lora_A.weight": np.ones((1, 64), np.float16),
        f"{NORM}.lora_B.weight": np.zeros((64, 1), np.float16),
    },
    "a trainer's counters": {
        "global_step": np.array(1000),
        "optimizer.state.0.exp_avg": np.ones(3, np.float32),
        "epoch": np.array(3),
    },
}
TEXT_ENCODER: dict[str, Arrays] = {
    "its LoRA": lora({"model.layers.0.self_attn.q_proj": (8, 8)}, prefix="qwen3."),
    "its differences": {
        "text_encoders.qwen3_4b.transformer.model.layers.0.input_layernorm.diff": np.ones(8, np.float16)
    },
    "its magnitudes": {"text_encoder.layers.0.self_attn.q_proj.lora_magnitude_vector": np.ones(8, np.float16)},
    "its biases": {"lora_te_layers_0_mlp_up_proj.lora_up.bias": np.ones(8, np.float16)},
    "its LoHa": {"lora_te1_text_model_encoder_layers_0_mlp_fc1.hada_w1_a": np.ones((8, 8), np.float16)},
}


@pytest.mark.parametrize("more", [*IDLE.values(), *TEXT_ENCODER.values()], ids=[*IDLE, *TEXT_ENCODER])
def test_what_changes_nothing_is_left_out_with_a_notice(tmp_path: Path, more: Arrays) -> None:
    plain = check_file(write(tmp_path / "a.safetensors", lora(POCKET)))
    report = check_file(write(tmp_path / "b.safetensors", lora(POCKET) | more))
    assert report.layers == plain.layers
    assert not plain.notices
    assert "left out" in " ".join(report.notices)
    assert str(len(more)) in report.notices[0]


CHANGING: dict[str, tuple[Arrays, str]] = {
    "a difference": ({f"{NORM}.diff": np.full(64, 0.1, np.float16)}, "full weight difference"),
    "a difference with one number": ({f"{NORM}.diff": np.eye(1, 64, 5, dtype=np.float16)}, "full weight difference"),
    "a weight of zero that is set": ({f"{NORM}.set_weight": np.zeros(64, np.float16)}, "full weight difference"),
    "a bias": ({f"{Q}.lora_B.my_style.bias": np.ones(256, np.float16)}, "with biases"),
    "a bias of A": ({f"{Q}.lora_A.bias": np.ones(1, np.float16)}, "with biases"),
    "a magnitude": ({f"{Q}.lora_magnitude_vector.default.weight": np.ones(256, np.float16)}, "a DoRA"),
    "a factor": ({f"{Q}.scalar": np.array(0.5, np.float32)}, "trained factor"),
    "a whole layer": (
        {"base_model.model.x_embedder.modules_to_save.default.weight": np.ones((2, 2), np.float16)},
        "full weight",
    ),
}


@pytest.mark.parametrize("name", CHANGING)
def test_what_would_change_something_is_refused(tmp_path: Path, name: str) -> None:
    more, says = CHANGING[name]
    with pytest.raises(LoraUnsupported, match=says):
        check_file(write(tmp_path / "a.safetensors", lora(POCKET) | more))


@pytest.mark.parametrize("key", ["vae.proj_out", "controlnet.transformer_blocks.0.attn.to_q", "transformer.norm_foo"])
def test_a_layer_of_something_else_is_no_state(tmp_path: Path, key: str) -> None:
    with pytest.raises(LoraMismatch, match="belong to no layer"):
        check_file(write(tmp_path / "a.safetensors", lora(POCKET) | lora({key: (256, 256)}, prefix="")))


ALPHAS = ({"alpha": "2"}, {"network_alpha": "2"}, {"lora_alpha": "2", "r": "1"}, {"alpha": "2.0", "rank": "1"},
          {"transformer.lora_alpha": "2", "transformer.r": "1"},
          {"dit.lora_alpha": "2", "text_encoder.lora_alpha": "9"},
          {"lora_adapter_metadata": json.dumps({"dit.r": 1, "dit.lora_alpha": 2, "text_encoder.r": 9})})  # fmt: skip


@pytest.mark.parametrize("metadata", ALPHAS)
def test_alpha_of_the_header_acts(tmp_path: Path, metadata: dict[str, str]) -> None:
    assert check_file(write(tmp_path / "a.safetensors", lora(POCKET), metadata)).scales == (2.0,)


def test_alpha_of_a_layer_wins_over_the_header(tmp_path: Path) -> None:
    alphas = {f"transformer.{name}.alpha": np.array(3, np.uint8) for name in POCKET}
    assert check_file(write(tmp_path / "a.safetensors", lora(POCKET) | alphas, {"alpha": "2"})).scales == (3.0,)


@pytest.mark.parametrize(
    "dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.float64]
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_alpha_of_any_width(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    alphas = {f"transformer.{name}.alpha": np.full(shape, 3, dtype) for name in POCKET}
    assert check_file(write(tmp_path / "a.safetensors", lora(POCKET) | alphas)).scales == (3.0,)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"ss_network_alpha": "2", "ss_network_dim": "1"}, "ss_network_alpha 2 does not act"),
        ({"alpha": "auto"}, "alpha of the header is 'auto', not a number"),
    ],
)
def test_an_alpha_that_does_not_act_is_reported(tmp_path: Path, metadata: dict[str, str], says: str) -> None:
    report = check_file(write(tmp_path / "a.safetensors", lora(POCKET), metadata))
    assert report.scales == (1.0,)
    assert says in report.notices[0]


@pytest.mark.parametrize("metadata", [{}, {"ss_network_alpha": "8", "ss_network_dim": "8.0"}, {"alpha": "None"},
                                      {"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}])  # fmt: skip
def test_nothing_is_said_where_there_is_nothing(tmp_path: Path, metadata: dict[str, str]) -> None:
    assert not check_file(write(tmp_path / "a.safetensors", lora(POCKET), metadata)).notices


@pytest.mark.parametrize("phrase", ["x" * 201, "a\nb", "a\0b", "x" * 1_000_000, '["' + "y" * 300 + '"]'])
def test_a_phrase_that_no_prompt_can_have_is_left_out(tmp_path: Path, phrase: str) -> None:
    report = check_file(write(tmp_path / "a.safetensors", lora(POCKET), {"trigger_phrase": phrase}))
    assert report.trigger_phrase is None
    assert "trigger phrase is left out" in report.notices[0]
