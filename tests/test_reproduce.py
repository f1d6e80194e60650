"""What the command line writes can be made again by plain diffusers, from the PNG's metadata and nothing of ours."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

ROOT = Path(__file__).parent.parent
POCKET = ROOT / "lora_runtime" / "pocket"
LORAS = ("style", "subject", "overtrained")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_sweep_is_reproduced_by_plain_diffusers(tmp_path: Path, precision: str) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "evaluation", "sweep", "--weights", "pocket", "--precision", precision,
        *(part for lora in LORAS for part in ("--lora", lora)),
        "--prompt", "a large ohwx in the snow", "--strengths", "0-1.2 [4]", "--seed", "7", "--out", str(out), "--json",
    ]  # fmt: skip
    environment = os.environ | {"KLEIN_LAB_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    lines = [cell for line in done.stdout.splitlines() if "answer" not in (cell := json.loads(line))]
    strengths = [0, 0.4, 0.8, 1.2]
    asked = {(lora, strength) for lora in LORAS for strength in strengths}
    assert {(line["lora"], line["strength"]) for line in lines} == asked
    assert {line["status"] for line in lines} == {"done"}
    assert (out / "grid.png").is_file()
    assert len(list(csv.DictReader((out / "cells.csv").read_text().splitlines()))) == len(lines) == 12

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    for lora in LORAS:
        pipeline = Flux2KleinPipeline.from_pretrained(POCKET / "weights" / "pocket", dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.load_lora_weights(str(POCKET / "loras" / f"{lora}.safetensors"), adapter_name="reproduced_lora")
        for line in (line for line in lines if line["lora"] == lora):
            check_image(pipeline, Path(line["image"]), lora=lora, strength=line["strength"], precision=precision)


def check_image(pipeline: Flux2KleinPipeline, path: Path, *, lora: str, strength: float, precision: str) -> None:
    """Make the image of `path` again from its own metadata."""
    with Image.open(path) as image:
        image.load()
        cell = json.loads(image.info["klein_lab"])
        pixels = np.asarray(image).astype(np.float64)
    assert (cell["lora"], cell["strength"], cell["precision"]) == (lora, strength, precision)
    pipeline.set_adapters(["reproduced_lora"], [cell["strength"]])
    again = pipeline(
        prompt=cell["prompt"],
        width=cell["width"],
        height=cell["height"],
        num_inference_steps=cell["num_inference_steps"],
        guidance_scale=cell["guidance_scale"],
        max_sequence_length=cell["max_sequence_length"],
        text_encoder_out_layers=tuple(cell["text_encoder_out_layers"]),
        generator=torch.Generator().manual_seed(cell["seed"]),
    ).images[0]
    error = ((pixels - np.asarray(again)) ** 2).mean()
    assert error == 0 or 10 * np.log10(255**2 / error) >= 45
