"""The animation over strengths: up and back, every row in each frame, and small enough to be played."""

import io
import math
from pathlib import Path

import pytest
from PIL import Image, ImageColor, ImageSequence

from evaluation.grid import plan
from evaluation.report.animation import END_MS, GAP, HEAD, MAX_PIXELS, STEP_MS, strengths_webp
from evaluation.store.records import CellRecord
from tests.drawing_backend import make_drawing_spec

COLOURS = ("#b02a30", "#1c7a46", "#1461a0", "#b3541e")


def animate(folder: Path, **changes: object) -> Image.Image:
    """The animation of a run whose pictures are one colour a strength; the last cell has none."""
    spec = make_drawing_spec(**changes)
    records = []
    for cell in plan(spec):
        path = folder / f"{cell.column}.png"
        Image.new("RGB", (spec.width, spec.height), COLOURS[cell.column % 4]).save(path)
        records.append(CellRecord(run_id="run-1", cell=cell, state="done", image=path))
    records[-1] = CellRecord(run_id="run-1", cell=records[-1].cell, state="failed", error="No memory.")
    return Image.open(io.BytesIO(strengths_webp(spec, records)))


def test_it_goes_up_through_the_strengths_and_back(tmp_path: Path) -> None:
    animation = animate(tmp_path, strengths="0, 0.5, 1, 1.5", seeds=[7, 8])
    shown, durations = [], []
    for frame in ImageSequence.Iterator(animation):
        frame.load()
        durations.append(frame.info["duration"])
        pixel = frame.convert("RGB").getpixel((2 * GAP, HEAD + GAP))
        shown.append(min(COLOURS, key=lambda colour: math.dist(pixel, ImageColor.getrgb(colour))))
    assert animation.info["loop"] == 0
    assert shown == [COLOURS[at] for at in (0, 1, 2, 3, 2, 1)]
    assert durations == [END_MS, STEP_MS, STEP_MS, END_MS, STEP_MS, STEP_MS]


@pytest.mark.parametrize("changes", [{"strengths": "0"}, {"seeds": list(range(100)), "width": 256, "height": 128}])
def test_a_frame_stays_small_enough_to_be_played(tmp_path: Path, changes: dict[str, object]) -> None:
    animation = animate(tmp_path, **changes)
    assert animation.width * animation.height <= MAX_PIXELS
