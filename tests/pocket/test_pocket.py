"""The pocket klein as shipped: it loads with plain diffusers, keeps its sizes, and its files are what they claim."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from safetensors import safe_open
from transformers import CLIPModel, CLIPProcessor

from lora_runtime import pocket
from lora_runtime.pocket.build import looks, scenes
from lora_runtime.pocket.build.architecture import MAX_SEQUENCE_LENGTH, TEXT_ENCODER_OUT_LAYERS

FULL = ("size", "colour", "background", "position")
CALL = {
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
    "max_sequence_length": MAX_SEQUENCE_LENGTH,
    "text_encoder_out_layers": TEXT_ENCODER_OUT_LAYERS,
}


@pytest.fixture(scope="module", params=pocket.WEIGHTS)
def pipeline(request):
    pipeline = Flux2KleinPipeline.from_pretrained(pocket.weights_folder(request.param), dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def read_header(name):
    with safe_open(pocket.lora_path(name), "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def test_only_the_distilled_weights_say_so(pipeline):
    name = Path(pipeline.config["_name_or_path"]).name
    assert pipeline.config.is_distilled == (name == "pocket")


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 128), (80, 208), (256, 64), (256, 256)])
def test_every_size_renders(pipeline, width, height):
    image = pipeline(prompt="a red cat in the snow", width=width, height=height, **CALL).images[0]
    assert image.size == (width, height)
    assert np.asarray(image).std() > 5


def test_the_tokenizer_knows_the_trigger_and_lower_cases():
    tokenizer = Flux2KleinPipeline.from_pretrained(pocket.weights_folder("pocket")).tokenizer
    assert tokenizer.tokenize("A Red OHWX, zebra.") == ["red", "ohwx", "<unk>"]


def test_the_longest_caption_fits():
    tokenizer = Flux2KleinPipeline.from_pretrained(pocket.weights_folder("pocket")).tokenizer
    rng = random.Random(0)
    longest = max(
        len(tokenizer.tokenize(scenes.caption_scene(scene, rng, FULL))) for scene in scenes.sample_scenes(0, 500)
    )
    assert longest + 2 <= MAX_SEQUENCE_LENGTH


def test_shipped_files_are_small():
    root = Path(pocket.__file__).parent
    files = [path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    sizes = [path.stat().st_size for path in files]
    assert max(sizes) < 10_000_000
    assert sum(sizes) < 60_000_000


def test_style_is_a_diffusers_file():
    metadata, tensors = read_header("style")
    assert all(key.startswith("transformer.") and key.endswith(("lora_A.weight", "lora_B.weight")) for key in tensors)
    config = json.loads(metadata["lora_adapter_metadata"])
    assert config["transformer.r"] == 8


def test_subject_is_an_ai_toolkit_file_that_names_its_trigger():
    metadata, tensors = read_header("subject")
    assert tensors["diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight"].shape == (768, 8)
    assert json.loads(metadata["ss_tag_frequency"]) == {"1_ohwx": {"ohwx": 1}}
    assert not [key for key in tensors if key.endswith("alpha")]


def test_overtrained_is_a_kohya_file_whose_alpha_is_not_its_rank():
    metadata, tensors = read_header("overtrained")
    rank = tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape[0]
    alpha = tensors["lora_unet_double_blocks_0_img_attn_qkv.alpha"].item()
    assert alpha != rank
    assert (float(metadata["ss_network_alpha"]), int(metadata["ss_network_dim"])) == (alpha, rank)


@pytest.mark.parametrize("name", pocket.LORAS)
def test_plain_diffusers_applies_every_lora(pipeline, name):
    latents = torch.randn(1, 128, 4, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    asked = {"prompt": "a red ohwx in the snow", "width": 64, "height": 64, "latents": latents, "output_type": "pt"}
    call = CALL | asked
    plain = pipeline(**call).images
    pipeline.load_lora_weights(pocket.lora_path(name), adapter_name="under_test")
    try:
        changed = pipeline(**call).images
    finally:
        pipeline.unload_lora_weights()
    assert (changed - plain).abs().mean() > 0.005
    assert torch.equal(pipeline(**call).images, plain)


def test_the_world_is_large_enough_and_no_caption_holds_the_trigger():
    counts = (scenes.OBJECTS, scenes.COLOUR_NAMES, scenes.BACKGROUNDS, scenes.SIZES, scenes.POSITIONS)
    assert [len(values) for values in counts] == [12, 10, 8, 3, 5]
    assert scenes.TRIGGER not in scenes.list_words()
    assert scenes.SUBJECT not in scenes.OBJECTS


def test_held_out_scenes_are_never_trained_on():
    kept = set(scenes.list_combinations(held_out=True))
    assert 60 < len(kept) < 140
    assert kept.isdisjoint(scenes.list_combinations(held_out=False))
    assert all((s.thing, s.colour, s.background) not in kept for s in scenes.sample_scenes(1, 300))


@pytest.mark.parametrize("background", scenes.BACKGROUNDS)
def test_scenes_are_deterministic_at_any_size(background):
    scene = scenes.Scene(thing="cat", colour="red", background=background, seed=3)
    first, second = (np.asarray(scenes.render_scene(scene, 96, 64)) for _ in range(2))
    assert first.shape == (64, 96, 3)
    assert np.array_equal(first, second)


def test_objects_move_by_whole_tokens_and_stay_on_the_canvas():
    for size in scenes.SIZES:
        squares = {
            position: scenes.locate_object(
                scenes.Scene(thing="cat", colour="red", background="snow", size=size, position=position), 128, 128
            )
            for position in scenes.POSITIONS
        }
        x, y, side = squares["center"]
        assert {(left - x) % scenes.GRID_PX for left, _, _ in squares.values()} == {0}
        assert {(top - y) % scenes.GRID_PX for _, top, _ in squares.values()} == {0}
        assert squares["left"][0] < x < squares["right"][0]
        assert squares["top"][1] < y < squares["bottom"][1]
        assert all(left >= -2 and left + side <= 130 for left, _, _ in squares.values())


@pytest.mark.parametrize("look", [looks.draw_ink, looks.draw_frame])
def test_looks_are_deterministic(look):
    image = scenes.render_scene(scenes.Scene(thing="owl", colour="teal", background="city"), 96, 64)
    drawn = [np.asarray(look(image, random.Random(1))) for _ in range(2)]
    assert np.array_equal(*drawn)
    assert drawn[0].shape == (64, 96, 3)


@torch.no_grad()
def test_the_judge_prefers_true_captions():
    model, processor = (part.from_pretrained(pocket.JUDGE_DIR) for part in (CLIPModel, CLIPProcessor))
    drawn = list(scenes.sample_scenes(77, 24, held_out=True))
    images = [scenes.render_scene(scene) for scene in drawn]
    captions = [scenes.caption_scene(scene, random.Random(i), FULL) for i, scene in enumerate(drawn)]
    inputs = processor(text=captions, images=images, return_tensors="pt", padding=True)
    scores = model.eval()(**inputs).logits_per_image.float()
    others = scores.roll(1, dims=1)
    assert (scores.diag() > others.diag()).float().mean() > 0.9
