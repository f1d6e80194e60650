"""What a sweep shows of each strength: from real pictures, drawn or rendered, to the tests that scenes pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from evaluation.grid import make_spec, plan
from evaluation.judge.answer import answer_cells, answer_run, find_answer
from evaluation.judge.contrast import KEPT, ask, measure_margins
from evaluation.judge.evidence import Evidence, Share, gather
from evaluation.judge.metrics.embeddings import embed_images
from evaluation.store.records import CellRecord
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from lora_runtime.backends.local import LocalBackend
from lora_runtime.errors import RenderFailed
from lora_runtime.judges import Judge, find_judge, read_judge
from lora_runtime.pocket import JUDGE_DIR
from lora_runtime.pocket.build.looks import draw_ink
from lora_runtime.pocket.build.scenes import (
    BACKGROUNDS,
    COLOUR_NAMES,
    OBJECTS,
    caption_scene,
    render_scene,
    sample_scenes,
)
from lora_runtime.pocket.build.scenes import SUBJECT as SUBJECT_THING
from lora_runtime.references import read_reference
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend, make_drawing_spec

PROMPTS = ("a red cat in the snow", "a blue fish underwater", "a green teapot in the city", "a yellow owl at night")
Paint = Callable[[CellRecord], Image.Image]


def paint(folder: Path, draw: Paint, **changes: object) -> list[CellRecord]:
    """Cells of a sweep that are done, each with the picture that `draw` makes of it."""
    records = []
    for cell in plan(make_drawing_spec(**changes)):
        path = folder / f"{cell.identity}.png"
        record = CellRecord(run_id="run-1", cell=cell, state="done", image=path)
        if not path.exists():
            draw(record).save(path)
        records.append(record)
    return records


def look(folder: Path, records: Sequence[CellRecord], *, judge: Judge | None = None) -> tuple[Evidence, ...]:
    def find_image(identity: str) -> Path | None:
        path = folder / f"{identity}.png"
        return path if path.exists() else None

    def see(images: Mapping[str, Path], judge: Judge) -> Mapping[str, npt.NDArray[np.float32]]:
        return dict(zip(images, embed_images([Image.open(path) for path in images.values()], judge), strict=True))

    return gather(records, find_image, lambda weights: judge, see)


def gradient(record: CellRecord) -> Image.Image:
    """Each prompt a picture of its own, which a stronger LoRA covers with one and the same."""
    own = Image.linear_gradient("L").rotate(90 * PROMPTS.index(record.cell.request.prompt)).resize((64, 64))
    same = Image.radial_gradient("L").resize((64, 64))
    return Image.blend(own, same, min(1.0, float(record.cell.request.strength))).convert("RGB")


def test_pictures_of_all_prompts_that_become_one_are_memorised(tmp_path: Path) -> None:
    (found,) = look(tmp_path, paint(tmp_path, gradient, prompts=PROMPTS, strengths="0, 0.2, 1"))
    intact = {str(point.strength): (point.tally("intact").passed, point.tally("intact").of) for point in found.points}
    assert intact == {"0.2": (4, 4), "1": (0, 4)}
    assert found.points[0].tally("prompt").of == 0, "without a judge no prompt is judged"
    (alone,) = look(tmp_path, paint(tmp_path, gradient, prompts=PROMPTS[:1], strengths="0, 0.2, 1"))
    assert alone.points[1].tally("intact").of == 0, "one prompt has nothing to be held against"


def test_pictures_nearer_to_the_look_than_every_base_image_are_like_it(tmp_path: Path) -> None:
    scenes = dict(zip(PROMPTS, sample_scenes(1, len(PROMPTS)), strict=True))

    def draw(record: CellRecord) -> Image.Image:
        scene = scenes[record.cell.request.prompt]
        thing = SUBJECT_THING if record.cell.request.strength == 1 else scene.thing
        return render_scene(replace(scene, thing=thing))

    looks = []
    for number, scene in enumerate(sample_scenes(2, 6, thing=SUBJECT_THING)):
        render_scene(scene).save(tmp_path / f"look-{number}.png")
        looks.append(read_reference(tmp_path / f"look-{number}.png"))
    inked = []
    for number, scene in enumerate(sample_scenes(3, 6)):
        draw_ink(render_scene(scene), Random(0)).save(tmp_path / f"ink-{number}.png")
        inked.append(read_reference(tmp_path / f"ink-{number}.png"))
    asked = {"prompts": PROMPTS, "strengths": "0, 0.5, 1", "likeness": looks}
    (found,) = look(tmp_path, paint(tmp_path, draw, **asked))
    assert [point.tally("like") for point in found.points] == [Share(passed=0, of=4), Share(passed=4, of=4)]
    assert (found.likeness, found.copied) == (6, 0)
    for cannot_tell in (looks[:1], inked):
        (found,) = look(tmp_path, paint(tmp_path, draw, **{**asked, "likeness": cannot_tell}))
        assert found.points[1].tally("like").of == 0, "one picture has no others; the bundled eye knows no looks"
    trained = read_reference(tmp_path / f"{plan(make_drawing_spec(**asked))[2].identity}.png")
    records = paint(tmp_path, draw, **{**asked, "likeness": [*looks, trained]})
    looks[0].path.unlink()
    (found,) = look(tmp_path, records)
    assert (found.likeness, found.copied) == (6, 1), "one that has gone is passed over, one that is copied is told"


def test_rounding_is_no_effect_and_a_lora_must_grow(tmp_path: Path) -> None:
    def rounded(record: CellRecord) -> Image.Image:
        return Image.new("RGB", (64, 64), (100 + (record.cell.request.strength > 0),) * 3)

    (found,) = look(tmp_path, paint(tmp_path, rounded, strengths="0, 0.5, 1"))
    assert [point.tally("acts").passed for point in found.points] == [0, 0]

    def constant(record: CellRecord) -> Image.Image:
        return Image.new("RGB", (64, 64), (100 + 3 * (record.cell.request.strength > 0),) * 3)

    (tmp_path / "constant").mkdir()
    (found,) = look(tmp_path / "constant", paint(tmp_path / "constant", constant, strengths="0, 0.5, 1"))
    assert [point.tally("acts").passed for point in found.points] == [0, 0], "as strong at half the strength"


def test_failed_waiting_and_base_less_scenes_make_n_smaller(tmp_path: Path) -> None:
    records = paint(tmp_path, gradient, prompts=PROMPTS, strengths="0, 0.2, 1")
    records[2] = replace(records[2], state="failed", image=None)
    (tmp_path / f"{records[3].cell.identity}.png").unlink()
    (found,) = look(tmp_path, records)
    assert [len(point.trials) for point in found.points] == [3, 2]
    assert found.missing == 3
    (without_zero,) = look(tmp_path, [record for record in records if record.cell.request.strength])
    assert without_zero == found, "the base image is found where the cell says, not among the rows"


def test_an_image_counts_once_whatever_runs_show_it(tmp_path: Path) -> None:
    records = paint(tmp_path, gradient, prompts=PROMPTS, strengths="0, 0.2, 1")
    again = [replace(record, run_id="run-2") for record in records]
    assert look(tmp_path, [*records, *again]) == look(tmp_path, records)


def test_loras_weights_and_trigger_phrases_are_never_pooled(tmp_path: Path) -> None:
    def draw(record: CellRecord) -> Image.Image:
        return Image.new("RGB", (64, 64), "red")

    ohwx = replace(SUBJECT, trigger_phrase="ohwx")
    records = [
        *paint(tmp_path, draw, loras=[STYLE], precision=["bf16", "fp32"]),
        *paint(tmp_path, draw, loras=[ohwx], prompts=["a red ohwx"], compare_trigger=True),
    ]
    found = look(tmp_path, records)
    assert [(each.value.lora.name, each.value.precision, each.value.trigger) for each in found] == [
        ("style", "bf16", None), ("style", "fp32", None), ("subject", "fp32", True), ("subject", "fp32", False)
    ]  # fmt: skip


def test_a_red_sweep_is_answered_nowhere(store: Store) -> None:
    stuck = DrawingBackend(acts=lambda strength: min(strength, Decimal("0.5")))
    run_id = sweep(store, stuck)
    assert store.run(run_id).is_red
    assert answer_run(store, run_id) == ()
    records = store.cells(run_id)
    assert answer_cells(store, records) == ()
    fine = store.cells(sweep(store, DrawingBackend(digest="d2")))
    assert answer_cells(store, [*records, *fine]) == answer_cells(store, fine)
    assert find_answer(fine[1], answer_cells(store, fine)) == answer_cells(store, fine)[0]
    assert find_answer(records[1], answer_cells(store, fine)) is None


def test_a_failed_scene_never_makes_a_strength_better(store: Store) -> None:
    whole = sweep(store, DrawingBackend(), prompts=PROMPTS)
    failing = DrawingBackend(
        digest="d2",
        fails=lambda request: RenderFailed("no") if request.prompt == PROMPTS[0] and request.strength == 1 else None,
    )
    (before,), (after,) = (answer_run(store, each) for each in (whole, sweep(store, failing, prompts=PROMPTS)))
    assert "1 picture failed" in " ".join(after.lines)
    assert after.marks.keys() == before.marks.keys()


@pytest.mark.parametrize(
    ("prompt", "others"),
    [
        ("a kitten in the snow", ("owl snow", "snow", "cat beach")),
        ("a large green ship by the sea", ("large red boat beach", "large green cat beach", "large green beach")),
        ("an astronaut riding a horse", ("boat beach", "cat snow", "a robot")),
    ],
)
def test_a_prompt_is_held_against_the_words_it_does_not_say(prompt: str, others: tuple[str, ...]) -> None:
    question = ask(prompt, ["a robot"], read_judge(JUDGE_DIR))
    assert question is not None
    said = question.texts[1:]
    assert question.texts[0] not in said
    assert [each for each in others if each not in said and each.removeprefix("a ") not in said] == []
    assert len(set(said)) == len(said)


def test_a_prompt_without_words_asks_nothing_and_unknown_words_are_never_shown() -> None:
    assert ask("an", [], read_judge(JUDGE_DIR)) is None, "what is left of a prompt that is a trigger phrase alone"
    unknown = ask("an astronaut riding a horse", [], read_judge(JUDGE_DIR))
    assert unknown is not None
    assert unknown.drawn == float("inf")


def sweep(store: Store, backend: DrawingBackend, **changes: object) -> str:
    spec = make_spec(backend, **{**_ASKED, **changes})  # type: ignore[arg-type]
    *_, finished = run_sweep(spec, backend=backend, store=store)
    assert isinstance(finished, Finished)
    return finished.run_id


_ASKED = {"loras": [STYLE], "prompts": ["a red fox"], "strengths": "0-1 [3]", "seeds": [7], "width": 64, "height": 64}


@pytest.mark.parametrize(
    ("lora", "strengths", "word", "best"),
    [
        ("overtrained", "0, 0.6, 1, 1.2", "use", "0.6"),
        ("style", "0, 0.8, 2", "use", "0.8"),
        ("style", "0, 0.1, 0.2", "try_higher", None),
        ("overtrained", "0, 1, 1.2", "try_lower", None),
    ],
)
def test_what_it_says_of_the_bundled_loras(
    local_backend: LocalBackend, store: Store, lora: str, strengths: str, word: str, best: str | None
) -> None:
    spec = make_spec(local_backend, loras=[lora], prompts=PROMPTS, seeds=[7, 8], strengths=strengths)
    *_, finished = run_sweep(spec, backend=local_backend, store=store)
    assert isinstance(finished, Finished)
    (found,) = answer_run(store, finished.run_id)
    assert (found.word, found.best) == (word, None if best is None else Decimal(best)), (found.sentence, found.lines)
    assert find_judge("pocket") is not None
    assert answer_run(store, finished.run_id) == (found,)


@pytest.mark.parametrize("kind", ["thing", "colour", "background"])
def test_a_picture_with_one_word_wrong_does_not_show_its_prompt(kind: str) -> None:
    judge, words = read_judge(JUDGE_DIR), {"thing": OBJECTS, "colour": COLOUR_NAMES, "background": BACKGROUNDS}[kind]
    right, wrong = [], []
    for scene in sample_scenes(77, 20, held_out=True):
        question = ask(caption_scene(scene, Random(1), ("colour", "background")), [], judge)
        assert question is not None
        other = words[(words.index(getattr(scene, kind)) + 1) % len(words)]
        pictures = [render_scene(scene), render_scene(replace(scene, **{kind: other}))]
        own, swapped = measure_margins(embed_images(pictures, judge), question.texts, judge)
        right.append(own >= KEPT)
        wrong.append(swapped >= KEPT)
    assert sum(right) >= 18
    assert sum(wrong) <= 2, "the object too, which a fall of the score hardly shows"


@pytest.mark.parametrize("prompt", ["an astronaut riding a horse", "a dragon over a volcano"])
def test_a_prompt_that_the_base_cannot_draw_is_no_answer(
    local_backend: LocalBackend, store: Store, prompt: str
) -> None:
    spec = make_spec(local_backend, loras=["overtrained"], prompts=[prompt], seeds=[41], strengths="0, 0.6, 1")
    *_, finished = run_sweep(spec, backend=local_backend, store=store)
    assert isinstance(finished, Finished)
    (found,) = answer_run(store, finished.run_id)
    assert (found.word, found.best) == ("base_does_not_draw_this", None)
