"""A whole model in the place of a LoRA: what it is, and where it belongs."""

import re

from lora_runtime.catalogue import WEIGHTS, Weights
from lora_runtime.errors import LoraMismatch
from lora_runtime.lora.contents import Contents
from lora_runtime.lora.file import LoraFile
from lora_runtime.lora.foreign import find_foreign
from lora_runtime.lora.module_names import find_place
from lora_runtime.lora.sizes import find_size
from lora_runtime.written import quote

_PLACE = "$KLEIN_LAB_MODELS_DIR"
_WEIGHT = ".weight"
_ADAPTER = re.compile(r"lora|lokr|hada_|oft_|ia3|vera_|[._]diff(_b)?$|set_weight", re.IGNORECASE)


def refuse_whole_model(file: LoraFile, contents: Contents) -> None:
    """Refuse a file of plain weights, without a layer of an adapter.

    Raises:
        LoraMismatch: It is one; the message says where it belongs, if anywhere.
    """
    weights = [key for key in contents.unmatched if key.endswith(_WEIGHT) and len(file.tensors[key].shape) >= 2]
    adapted = any(_ADAPTER.search(key) for key in contents.unmatched)
    if contents.adapters or adapted or not weights:
        return
    what = f"{file.name} is a whole model, not a LoRA"
    fits = [record for record in WEIGHTS.values() if _fits(file, weights, record)]
    if fits:
        raise LoraMismatch(f"{what}: its layers are those of {fits[0].label}. {_place(contents, weights, fits)}")
    foreign = find_foreign(file, contents, [])
    if foreign is not None:
        raise LoraMismatch(f"{what}: it is {foreign}, and only FLUX.2 [klein] runs here. Choose a LoRA for klein.")
    raise LoraMismatch(
        f"{what}: it has plain weights such as {quote(weights[0])}. A whole FLUX.2 [klein] is put at {_PLACE}/NAME; "
        "choose a LoRA here."
    )


def _fits(file: LoraFile, keys: list[str], record: Weights) -> bool:
    """Whether all those weights that a transformer of klein could have are of this one's sizes."""
    sizes = [
        (place, file.tensors[key].shape) for key in keys if (place := find_place(key.removesuffix(_WEIGHT))) is not None
    ]
    return bool(sizes) and all(
        find_size(place.targets[0], record.shape) == (shape[0] // len(place.targets), shape[1])
        for place, shape in sizes
    )


def _place(contents: Contents, keys: list[str], fits: list[Weights]) -> str:
    """Where it belongs. BFL's single files have names of their own; diffusers keeps the transformer in a folder."""
    if all(record.bundled for record in fits):
        return f"That model is bundled; put a larger one at {_PLACE}/NAME, and choose a LoRA here."
    fp8 = "-fp8" if any(key.endswith("weight_scale") for key in contents.unmatched) else ""
    single = any("double_blocks" in key or "single_blocks" in key for key in keys)
    places = (
        f"{_PLACE}/{record.single_file}{fp8}.safetensors" if single else f"{_PLACE}/{record.name}/transformer/"
        for record in fits
        if not record.bundled
    )
    return f"Put it at {' or '.join(places)}, and choose a LoRA here."
