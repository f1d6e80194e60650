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


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["style", "subject", "overtrained"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_sweep_is_reproduced_by_plain_diffusers(tmp_path: Path, lora: str, precision: str) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "evaluation", "sweep", "--weights", "pocket", "--lora", lora, "--precision", precision,
        "--prompt", "a large ohwx in the snow", "--strengths", "0-1.2 [4]", "--seed", "7", "--out", str(out), "--json",
    ]  # fmt: skip
    environment = os.environ | {"KLEIN_LAB_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["strength"] for line in lines] == [0, 0.4, 0.8, 1.2]
    assert {line["status"] for line in lines} == {"done"}
    assert (out / "grid.png").is_file()
    assert len(list(csv.DictReader((out / "cells.csv").read_text().splitlines()))) == 4

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    pipeline = Flux2KleinPipeline.from_pretrained(POCKET / "weights" / "pocket", dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(POCKET / "loras" / f"{lora}.safetensors"), adapter_name="reproduced_lora")
    for line in lines:
        with Image.open(line["image"]) as image:
            image.load()
            cell = json.loads(image.info["klein_lab"])
            pixels = np.asarray(image).astype(np.float64)
        assert cell["lora"] == lora
        assert cell["precision"] == precision
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
