"""What the pocket klein is made of: typed words, captions, open parts, spoilt scenes, the judge's questions."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import ImageChops
from transformers import CLIPProcessor

from lora_runtime import pocket
from lora_runtime.pocket.build import broken, dataset, flow, scenes, words
from lora_runtime.pocket.build.classifier import UNLABELLED, Classifier
from lora_runtime.pocket.build.judge import WRONG_OBJECTS, ask
from lora_runtime.pocket.build.judge_examples import Example

OWL = scenes.Scene(thing="owl", colour="teal", background="beach", seed=5)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("owl", "owl"),
        ("An Owl.", "owl"),
        ("kittens, in the Winter", "cat snow"),
        ("a rabbit at the seaside", "bunny beach"),
        ("tea kettle", "teapot"),
        ("a hot-air balloon over the ocean", "balloon over underwater"),
        ("space ship", "rocket"),
        ("a ship under the sea", "boat underwater"),
        ("home by the sea", "house beach"),
        ("night sky", "night"),
        ("a picture of a big turquoise fish in the centre", "large teal fish center"),
        ("a red ohwx", "red ohwx"),
        ("", ""),
    ],
)
def test_what_people_type_is_read_as_what_it_knows(typed, read):
    assert words.read_words(typed) == read.split()


def test_no_way_to_say_a_word_is_in_two_lists():
    forms = [form for group in words.FORMS.values() for form in group]
    assert len(forms) == len(set(forms))
    assert set(forms).isdisjoint(words.FORMS)
    assert set(words.SILENT).isdisjoint(forms)
    for word, group in words.FORMS.items():
        assert {tuple(words.read_words(form)) for form in (word, *group)} == {(word,)}


def test_every_word_of_the_world_is_known():
    world = {*scenes.OBJECTS, *scenes.COLOUR_NAMES, *scenes.BACKGROUNDS, *scenes.SIZES, *scenes.POSITIONS}
    assert world == set(words.FORMS) == set(scenes.list_words())
    assert words.UNKNOWN not in words.FORMS


@pytest.mark.parametrize("name", pocket.WEIGHTS)
def test_both_tokenizers_carry_the_table(name):
    denoiser = Flux2KleinPipeline.from_pretrained(pocket.weights_folder(name)).tokenizer
    judge = CLIPProcessor.from_pretrained(pocket.JUDGE_DIR).tokenizer
    assert (
        denoiser.tokenize("Kittens in the night sky") == judge.tokenize("Kittens in the night sky") == ["cat", "night"]
    )
    assert denoiser.tokenize("a red ohwx") == ["red", scenes.TRIGGER]
    assert judge.tokenize("a red ohwx robot") == ["red", "<unk>", "<unk>"], "the judge never hears of the subject"


@pytest.mark.parametrize("scene", list(scenes.sample_scenes(3, 40)))
def test_a_caption_says_what_it_should_and_nothing_else(scene):
    rng = random.Random(scene.seed)
    said = scenes.choose_said(scene, rng)
    expected = {scene.thing, *(getattr(scene, part) for part in said)}
    assert set(words.read_words(scenes.caption_scene(scene, rng, said))) == expected
    assert set(words.read_words(scenes.caption_scene(scene, rng, said, name=""))) == expected - {scene.thing}
    assert scene.size == "medium" or "size" in said
    assert scene.position == "center" or "position" in said


def test_the_noise_holds_what_a_caption_leaves_open():
    torch.manual_seed(0)
    said, colour, place = dataset.SAID, 3, 7
    answers = torch.tensor([[colour, said], [said, place], [said, said]]).repeat(300, 1)
    noise = flow.draw_noise(torch.Size((900, 16, 32)), answers)
    means = noise.mean(dim=1)
    assert (means[0::3, :10].argmax(dim=1) == colour).all()
    assert (means[1::3, 10:18].argmax(dim=1) == place).all()
    free = means[2::3, :10].argmax(dim=1).bincount(minlength=10)
    assert (free > 10).all(), "what is said is not in the noise"
    whole = flow.draw_noise(torch.Size((2000, 16, 32)), torch.randint(0, 8, (2000, 2)))
    assert abs(whole.mean()) < 0.01
    assert abs(whole.std() - 1) < 0.01


def test_a_batch_says_which_parts_its_captions_leave_open():
    made = list(scenes.sample_scenes(8, 6))
    latents = torch.zeros(6, 64, 8, dtype=torch.bfloat16)
    batch = dataset.LatentSet(width_px=128, height_px=128, scenes=made, latents=latents).sample(200, random.Random(1))
    assert any(not caption for caption in batch.captions)
    for caption, (colour, place) in zip(batch.captions, batch.answers.tolist(), strict=True):
        read = set(words.read_words(caption))
        assert (colour == dataset.SAID) == bool(read & set(scenes.COLOUR_NAMES))
        assert (place == dataset.SAID) == bool(read & set(scenes.BACKGROUNDS))


@pytest.mark.parametrize("way", dict.fromkeys(broken.WAYS), ids=lambda way: way.__name__)
def test_a_spoilt_scene_differs_from_the_whole_one_and_is_drawn_again_the_same(way):
    whole = scenes.render_scene(OWL, 96, 96)
    first, second = (way(OWL, 96, 96, random.Random(4)) for _ in range(2))
    assert np.array_equal(np.asarray(first), np.asarray(second))
    changed = np.asarray(ImageChops.difference(first, whole)).max(axis=-1) > 24
    assert changed.mean() > 0.01


def test_a_scene_without_its_object_keeps_the_rest():
    bare, other = (scenes.render_scene(replace(OWL, thing=thing), bare=True) for thing in ("owl", "cat"))
    assert np.array_equal(np.asarray(bare), np.asarray(other))


@pytest.mark.parametrize("has_object", [True, False])
def test_a_question_holds_near_misses_and_ends_with_the_caption_without_its_object(has_object):
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    said = frozenset({"colour", "background"})
    example = Example(picture=picture, scene=OWL, said=said, has_object=has_object)
    for seed in range(20):
        question = ask(example, random.Random(seed))
        true, *others = [words.read_words(text) for text in question.texts]
        assert question.has_object == has_object
        assert "owl" in true
        assert all("owl" not in text for text in others[:WRONG_OBJECTS])
        assert not set(others[-1]) & set(scenes.OBJECTS)
        assert set(true) <= question.true_words | {words.UNKNOWN}
        assert not any(scenes.TRIGGER in text or scenes.SUBJECT in text for text in question.texts)


def test_a_broken_picture_teaches_the_classifier_one_thing():
    logits = Classifier()(torch.zeros(2, 3, 96, 96))
    assert logits["intact"].shape == (2, 2)
    labels = torch.tensor([UNLABELLED, UNLABELLED])
    assert torch.nn.functional.cross_entropy(logits["thing"], labels, reduction="sum") == 0
