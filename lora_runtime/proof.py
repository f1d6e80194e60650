"""Export a LoRA: a file gets its name only after what it draws at 1 was compared with the original at its strength.

Pictures are compared in float32 on weights that run here in it. Where there are none, the changes of the weights are,
layer by layer, and what is returned says so. In 16 bits the strength may round too much: then the file is float32.
"""

import math
import tempfile
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from lora_runtime.backends.base import Backend
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import Conflict, InvalidInput, LoraUnsupported, StorageFailed
from lora_runtime.lora.difference import measure_difference
from lora_runtime.lora.export import write_export
from lora_runtime.lora.file import has_ending
from lora_runtime.lora.library import read_lora, report_of
from lora_runtime.lora.spellings import warn_diffusers
from lora_runtime.requests import make_request
from lora_runtime.strength import check_strength
from lora_runtime.values import Failed, LoraRef, ModelStatus, Rendered, RenderRequest

LEAST_DB: Final = 50.0
"""How near an export must come: the PSNR of 8-bit pictures, or the same ratio of weight changes."""

_SEEDS: Final = (7, 11)
"""A picture of each is compared."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written, and sentences on how near it comes and in what type."""

    path: Path
    sha256: str
    said: tuple[str, ...]


def export_lora(
    lora: LoraRef, out: Path, *, strength: Decimal, spelling: str, backend: Backend, overwrite: bool = False
) -> Exported:
    """Write `lora` to `out` so that 1 is what `strength` was; nothing is written when it would draw otherwise.

    Raises:
        InvalidInput: The strength, the spelling or the file's ending is none.
        Conflict: There is such a file, and it is not to be overwritten.
        LoraUnsupported: It is a LoKr that the spelling does not hold, or the export does not draw the same.
        NotFound, LoraError: The file has gone or is damaged.
        StorageFailed: The folder is full or not writable.
    """
    if not has_ending(out.name):
        raise InvalidInput(
            f"Out: {out.name!r} does not end in .safetensors, by which readers know such a file. Add it."
        )
    if out.exists() and not overwrite:
        raise Conflict(f"{out} is there already. Choose another name, or overwrite it with --overwrite.")
    check_strength(strength)
    report = report_of(lora)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".exporting-") as folder:
            draft = Path(folder) / out.name
            for widened in (False, True):
                write_export(report, draft, strength=float(strength), spelling=spelling, widened=widened)
                made = read_lora(draft)
                near, how = _compare(lora, made, strength, backend)
                if near >= LEAST_DB:
                    said = (*_say(near, how, strength, widened=widened), *warn_diffusers(report_of(made).layers))
                    draft.replace(out)
                    return Exported(path=out, sha256=made.sha256, said=said)
    except OSError as error:
        raise StorageFailed(
            f"Could not write {out}: {error.strerror or 'the disk failed'}. Choose another place."
        ) from error
    raise LoraUnsupported(
        f"The export of {lora.name} comes only within {near:.1f} dB of the original ({how}), not {LEAST_DB:g}, so "
        "nothing was written. Use the original at its strength."
    )


def _say(near: float, how: str, strength: Decimal, *, widened: bool) -> tuple[str, ...]:
    same = "the very same" if math.isinf(near) else f"the same to {near:.1f} dB"
    return (
        f"At 1 it is {same} as the original at {strength} ({how}).",
        *(["It is float32: in 16 bits its rounding would be seen."] if widened else []),
    )


def _compare(lora: LoraRef, made: LoraRef, strength: Decimal, backend: Backend) -> tuple[float, str]:
    """How near `made` at 1 is to `lora` at `strength`, in decibels, and what was compared."""
    before, after = report_of(lora), report_of(made)
    if after.fits != before.fits:
        raise LoraUnsupported(f"The export of {lora.name} fits other weights than the original. Nothing was written.")
    status = next((each for each in backend.models() if _compares(each, before.fits)), None)
    if status is None:
        near = measure_difference(before, after, strength=float(strength))
        labels = " or ".join(find_weights(name).label for name in before.fits)
        return near, f"the weights' changes, layer by layer: no {labels} runs here in float32"
    prompt = f"a {lora.trigger_phrase or 'red cat'} in the snow"
    asked = [
        make_request(status, prompt=prompt, seed=seed, lora=ref, strength=at)
        for seed in _SEEDS
        for ref, at in ((lora, strength), (made, Decimal(1)))
    ]
    images = _render(backend, asked)
    pairs = zip(images[::2], images[1::2], strict=True)
    return min(
        _psnr(*pair) for pair in pairs
    ), f"{len(_SEEDS)} pictures on {find_weights(status.weights).label} in float32"


def _compares(status: ModelStatus, fits: tuple[str, ...]) -> bool:
    return status.available and status.precision == "fp32" and status.weights in fits


def _render(backend: Backend, asked: list[RenderRequest]) -> list[npt.NDArray[np.float64]]:
    images: dict[int, npt.NDArray[np.float64]] = {}
    for event in backend.render(asked):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Rendered):
            images[event.index] = np.asarray(event.image, np.float64)
    return [images[index] for index in range(len(asked))]


def _psnr(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Of two 8-bit pictures, in decibels."""
    error = float(np.square(a - b).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf
