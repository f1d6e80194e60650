"""Rebuild the pocket klein: `python -m lora_runtime.pocket.build all`, or one step by name.

Steps run in the order of `STEPS`; each keeps its result in the work folder and is skipped when that is there, so a
stopped build goes on where it was. `check` measures what is shipped and prints a markdown table. Training is measured
in minutes, that of LoRAs in steps: those below are for two CPU cores, nearly four hours; `--pace` asks for a share.
`checkpoints` trains the bundled training run on the `pocket-base` that is shipped.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
from platformdirs import user_cache_path
from rich.console import Console
from rich.logging import RichHandler

from lora_runtime.pocket import CLASSIFIER_DIR, JUDGE_DIR, LORAS, TRAINING, lora_path, weights_folder
from lora_runtime.pocket.build.architecture import build_pipeline, forget_padding
from lora_runtime.pocket.build.base import Checkpoint, load_average, train_base
from lora_runtime.pocket.build.check import Outcome, format_table, run_trials
from lora_runtime.pocket.build.check_judge import check_drawings, check_rendered, load_judge
from lora_runtime.pocket.build.classifier import train_classifier
from lora_runtime.pocket.build.dataset import load_buckets, render_buckets
from lora_runtime.pocket.build.distill import distill
from lora_runtime.pocket.build.flow import load_transformer_copy
from lora_runtime.pocket.build.judge import train_judge
from lora_runtime.pocket.build.judge_examples import draw_examples, keep_examples, load_examples, render_examples
from lora_runtime.pocket.build.lora_files import write_ai_toolkit, write_diffusers, write_kohya
from lora_runtime.pocket.build.loras import Factors, make_lessons, train_lora
from lora_runtime.pocket.build.rendering import VARIANTS, Variant
from lora_runtime.pocket.build.scenes import TRIGGER
from lora_runtime.pocket.build.vae import sharpen_decoder, train_vae

log = logging.getLogger(__name__)

SHARD = "9MB"
"""Every shipped file stays under 10 MB."""

EXAMPLES_DRAWN, EXAMPLES_RENDERED = 7000, 1600
"""Pictures that the judge learns from."""


CHECKPOINTS = (50, 100, 150, 200, 300, 400)
"""Steps at which the training run is kept."""


@dataclass(frozen=True, kw_only=True)
class Minutes:
    """How long each part is trained; a LoRA by its steps."""

    vae: float = 16.0
    decoder: float = 12.0
    base: float = 112.0
    distill: float = 14.0
    lora_steps: float = 1000.0
    classifier: float = 9.0
    judge: float = 12.0


def build_vae_step(work: Path, minutes: Minutes) -> None:
    """Train the autoencoder, then its decoder alone."""
    if not (work / "vae_bf16" / "config.json").exists():
        vae = train_vae(work / "vae", minutes=minutes.vae)
        sharpen_decoder(vae, work / "vae.pictures.pt", minutes=minutes.decoder)
        vae.to(torch.bfloat16).save_pretrained(work / "vae_bf16")


def build_base_step(work: Path, minutes: Minutes) -> None:
    """Draw and encode the scenes, train `pocket-base`, ship it."""
    render_buckets(work / "scenes")
    pipeline = _load_vae_into(build_pipeline(), work)
    sets = load_buckets(work / "scenes", pipeline.vae)
    train_base(pipeline, sets, Checkpoint(path=work / "base.pt", total_s=60 * minutes.base))
    ship(pipeline, "pocket-base")


def build_distill_step(work: Path, minutes: Minutes) -> None:
    """Distil `pocket` and ship it; everything but the denoiser is the teacher's."""
    pipeline = _load_trained(work)
    student = load_transformer_copy(pipeline.transformer)
    path = work / "student.pt"
    if path.exists():
        student.load_state_dict(torch.load(path))
    else:
        distill(pipeline, student, path, minutes=minutes.distill)
    pipeline.transformer = student
    pipeline.register_to_config(is_distilled=True)
    ship(pipeline, "pocket")


def build_loras_step(work: Path, minutes: Minutes) -> None:
    """Train the LoRAs on `pocket-base` and write each in its spelling."""
    for name in LORAS:
        pipeline = _load_trained(work)  # afresh: PEFT leaves its wrappers on the layers it adapted
        ((_, factors),) = _train_lora(name, pipeline, work, checkpoints=(round(minutes.lora_steps),))
        path = lora_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "style":
            write_diffusers(path, factors)
        elif name == "subject":
            write_ai_toolkit(path, factors, trigger=TRIGGER)
        else:
            write_kohya(path, factors)
        log.info("wrote %s", path.name)


def build_checkpoints_step(work: Path, minutes: Minutes) -> None:
    """Train the bundled training run on the shipped `pocket-base`; its files are named as AI-Toolkit names them."""
    pipeline = Flux2KleinPipeline.from_pretrained(weights_folder("pocket-base"), dtype=torch.float32)
    pipeline.vae.to(torch.get_default_device(), memory_format=torch.channels_last)
    pipeline.to(torch.get_default_device())
    pipeline.text_encoder.eval().requires_grad_(False)
    TRAINING.mkdir(parents=True, exist_ok=True)
    for step, factors in _train_lora(TRAINING.name, pipeline, work, checkpoints=CHECKPOINTS):
        path = TRAINING / f"{TRAINING.name}_{step:09}.safetensors"
        write_ai_toolkit(path, factors)
        log.info("wrote %s", path.name)


def _train_lora(
    name: str, pipeline: Flux2KleinPipeline, work: Path, *, checkpoints: Sequence[int]
) -> Iterator[tuple[int, Factors]]:
    lessons = make_lessons(name, pipeline.vae)
    return train_lora(pipeline, lessons, work / f"lora-{name}.pt", checkpoints=checkpoints, tie_qkv=name != "style")


def build_classifier_step(work: Path, minutes: Minutes) -> None:
    """Train the classifier that `check` measures with."""
    if not (work / "classifier.done").exists():
        train_classifier(_load_vae_into(build_pipeline(), work).vae, CLASSIFIER_DIR, minutes=minutes.classifier)
        (work / "classifier.done").touch()


def build_judge_step(work: Path, minutes: Minutes) -> None:
    """Train the judge, on drawings and on what the shipped weights and LoRAs draw."""
    if not (work / "judge.done").exists():
        drawn, rendered = work / "drawn.pt", work / "rendered.pt"
        if not drawn.exists():
            keep_examples(draw_examples(EXAMPLES_DRAWN, seed=8), drawn)
        if not rendered.exists():
            keep_examples(render_examples(EXAMPLES_RENDERED, seed=70_000), rendered)
        train_judge([*load_examples(drawn), *load_examples(rendered)], JUDGE_DIR, minutes=minutes.judge)
        (work / "judge.done").touch()


STEPS = {
    "vae": build_vae_step,
    "base": build_base_step,
    "distill": build_distill_step,
    "loras": build_loras_step,
    "checkpoints": build_checkpoints_step,
    "classifier": build_classifier_step,
    "judge": build_judge_step,
}


def ship(pipeline: Flux2KleinPipeline, name: str) -> None:
    """Save a pipeline in bf16 where it is shipped from, as anyone's diffusers will read it."""
    folder = weights_folder(name)
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        part.to(torch.bfloat16).requires_grad_(False)
    forget_padding(pipeline.tokenizer)
    for stale in folder.rglob("*.safetensors*"):
        stale.unlink()
    pipeline.save_pretrained(folder, max_shard_size=SHARD)
    for path in folder.rglob("config.json"):
        _forget_origin(path)
    _forget_origin(folder / "model_index.json")
    log.info("shipped %s", name)


def main(
    step: Annotated[str, typer.Argument(help=f"all, check, or one of {', '.join(STEPS)}.")] = "all",
    work: Annotated[Path | None, typer.Option(help="Where unfinished work is kept.")] = None,
    pictures: Annotated[int, typer.Option(help="check: pictures a line.")] = 96,
    weights: Annotated[str, typer.Option(help="check: pocket, pocket-base or both.")] = "both",
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    pace: Annotated[float, typer.Option(help="Share of the minutes each part is trained for.")] = 1.0,
) -> None:
    """Rebuild the pocket klein, or measure it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    work = work or user_cache_path("klein-lora-lab") / "pocket-build"
    work.mkdir(parents=True, exist_ok=True)
    if step not in (*STEPS, "all", "check"):
        raise typer.BadParameter(f"There is no step {step!r}. Choose all, check, {', '.join(STEPS)}.")
    if device != "cpu":  # where it is the default already, saying so would slow every call down
        torch.set_default_device(device)
    minutes = Minutes(**{part: pace * value for part, value in asdict(Minutes()).items()})
    for name, build in STEPS.items():
        if step in ("all", name):
            build(work, minutes)
    if step in ("all", "check"):
        outcomes = []
        for outcome in check_all(pictures, [variant for variant in VARIANTS if weights in ("both", variant.weights)]):
            outcomes.append(outcome)
            log.info("%s, %s: %s", outcome.column, outcome.question, outcome.value)
        Console().print(format_table(outcomes), soft_wrap=True, markup=False, highlight=False)


def check_all(pictures: int, variants: Sequence[Variant]) -> Iterator[Outcome]:
    """Measure what is shipped: weights, LoRAs and the judge."""
    judge = load_judge()
    yield from check_drawings(judge, pictures=2 * pictures)
    for variant in variants:
        yield from check_rendered(judge, variant, pictures=3 * pictures if variant is VARIANTS[0] else pictures)
    yield from run_trials(pictures=pictures, variants=variants)


def _load_vae_into(pipeline: Flux2KleinPipeline, work: Path) -> Flux2KleinPipeline:
    """Put the trained autoencoder into a pipeline, in the precision it ships with, computing in fp32."""
    vae = AutoencoderKLFlux2.from_pretrained(work / "vae_bf16").float().eval().requires_grad_(False)
    pipeline.vae = vae.to(torch.get_default_device(), memory_format=torch.channels_last)
    return pipeline


def _forget_origin(path: Path) -> None:
    """Drop the path that a part was loaded from: it means nothing to anyone else."""
    facts = {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}
    path.write_text(json.dumps(facts, indent=2) + "\n")


def _load_trained(work: Path) -> Flux2KleinPipeline:
    pipeline = _load_vae_into(build_pipeline(), work)
    load_average(pipeline, work / "base.pt")
    pipeline.to(torch.get_default_device())
    pipeline.transformer.eval()
    pipeline.text_encoder.eval().requires_grad_(False)
    return pipeline


if __name__ == "__main__":
    typer.run(main)
