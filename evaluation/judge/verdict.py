"""The verdict on a sweep: did strength 0 give the base image, and did every strength change the picture?

A grid of equal pictures under different labels is the commonest fault of strength sweeps, and nobody sees it. Hence
three checks on pixels: the LoRA attached at strength 0 (the *control*) equals the base image; not every strength equals
it; neighbouring strengths differ.

Two images made on a CPU in batches of the same size count as equal when every pixel is. Elsewhere another batch shape
may choose another kernel and round differently, so there a difference of 2 of 255 counts as none.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import groupby, pairwise
from typing import Final

import numpy as np
from PIL import Image

from evaluation.judge.distance import describe_distances
from evaluation.store.store import CellRecord, Control, Verdict
from evaluation.strengths import format_strength

TOLERANCE: Final = 2
"""Largest difference of a channel value (0 to 255) that kernels for other batch shapes may cause."""


def compare_pixels(
    image: Image.Image, provenance: Mapping[str, str], other: Image.Image, other_provenance: Mapping[str, str]
) -> Control:
    """Return the largest difference between two images of one size and the one that the way they were made allows."""
    pixels, other_pixels = (np.asarray(picture.convert("RGB"), dtype=np.int16) for picture in (image, other))
    difference = int(np.abs(pixels - other_pixels).max())
    same = provenance.get("batch_size") == other_provenance.get("batch_size")
    on_cpu = all(made.get("device", "").startswith("cpu") for made in (provenance, other_provenance))
    return Control(difference=difference, tolerance=0 if same and on_cpu else TOLERANCE)


def judge(records: Sequence[CellRecord], controls: Mapping[str, Control | None]) -> Verdict:
    """Judge the cells that have an image.

    `controls` has the result of each control of the sweep under the name of its LoRA; None when it has none yet. How
    far two precisions are apart is measured and said, but never red: another precision is another picture.
    """
    red: list[str] = []
    compared = 0
    for _, row in groupby(records, key=lambda record: record.cell.row):
        done = sorted((record for record in row if record.state == "done"), key=_strength)
        compared += max(len(done) - 1, 0)
        red += _no_effect(done) or _same_neighbours(done)
    broken = [_broken(name, control) for name, control in controls.items() if control and not _equal(control)]
    distances = describe_distances(records)
    if broken or red:
        return Verdict(ok=False, summary=_red_summary(red, broken), findings=(*broken, *red, *distances))
    notes = (*(_control_note(name, control) for name, control in controls.items()), *_asked_note(records), *distances)
    if compared == 0:
        return Verdict(ok=None, summary="Not judged: there are no two strengths to compare yet.", findings=notes)
    if any(control is None for control in controls.values()):
        return Verdict(
            ok=None, summary="Not judged: strength 0 was not checked with the LoRA attached.", findings=notes
        )
    acted = (
        "Every strength acted" if all(record.state == "done" for record in records) else "Every strength so far acted"
    )
    return Verdict(
        ok=True, summary=f"{acted}{', and strength 0 is the base model' if controls else ''}.", findings=notes
    )


def _no_effect(row: Sequence[CellRecord]) -> list[str]:
    """The finding that all strengths of a row equal its base image, if they do."""
    base = [record for record in row if not _strength(record)]
    others = [record for record in row if _strength(record)]
    if not base or not others or not all(_equal(_compare(base[0], other)) for other in others):
        return []
    strengths = _join(format_strength(_strength(record)) for record in others)
    return [f"The LoRA had no effect: {strengths} gave the same picture as strength 0 ({_where(others[0])})."]


def _same_neighbours(row: Sequence[CellRecord]) -> list[str]:
    return [
        f"Strengths {format_strength(_strength(lower))} and {format_strength(_strength(higher))} gave the same picture "
        f"({_where(higher)})."
        for lower, higher in pairwise(row)
        if _equal(_compare(lower, higher))
    ]


def _compare(first: CellRecord, second: CellRecord) -> Control:
    if first.image is None or second.image is None:
        raise ValueError("only cells with an image can be compared")
    with Image.open(first.image) as image, Image.open(second.image) as other:
        return compare_pixels(image, first.provenance, other, second.provenance)


def _equal(found: Control) -> bool:
    return found.difference <= found.tolerance


def _broken(name: str, control: Control) -> str:
    return (
        f"Strength 0 is not the base model: with {name} attached at strength 0, pixels differ from the base image "
        f"by up to {control.difference} of 255."
    )


def _control_note(name: str, control: Control | None) -> str:
    if control is None:
        return f"{name} at strength 0 has not been compared with the base image yet. Resume the run to do it."
    if control.difference:
        return (
            f"{name} at strength 0 differs from the base image by up to {control.difference} of 255: rounding of other "
            "batch shapes, which counts as equal."
        )
    return f"{name} at strength 0 equals the base image, pixel for pixel."


def _asked_note(records: Sequence[CellRecord]) -> list[str]:
    """What is not checked: a server that is asked for strength 0 shows its own idea of it."""
    asked = {record.cell.target.backend for record in records if record.cell.target.server}
    return [f"On {name}, strength 0 is what the server sent for it; no base image was asked for." for name in asked]


def _red_summary(red: Sequence[str], broken: Sequence[str]) -> str:
    if any(finding.startswith("The LoRA had no effect") for finding in red):
        return "The LoRA had no effect."
    return "Strength 0 is not the base model." if broken else "Some strengths gave the same picture."


def _where(record: CellRecord) -> str:
    request = record.cell.request
    prompt = request.prompt if len(request.prompt) <= 60 else f"{request.prompt[:59]}…"
    return f'{request.lora.name if request.lora else "no LoRA"}, seed {request.seed}, "{prompt}"'


def _join(words: Iterable[str]) -> str:
    *most, last = words
    return f"strengths {', '.join(most)} and {last}" if most else f"strength {last}"


def _strength(record: CellRecord) -> Decimal:
    return record.cell.request.strength
