"""Programs that make an image again: curl and Python for the BFL API, plain diffusers without anything of ours.

What a person wrote goes into them as data. JSON is quoted for the shell and every Python string is a literal, so that
quotes, newlines or `$()` in a prompt stay what they are; characters that are not printable are escaped, because code
that is copied should be what it looks like. The key is read from BFL_API_KEY; a server without keys takes any.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

from lora_runtime.backends.bfl import find_endpoint, list_fields
from lora_runtime.backends.bfl_words import FINETUNE_ID, FINETUNE_STRENGTH, IMAGE_FIELDS
from lora_runtime.catalogue import Weights, find_weights
from lora_runtime.errors import InvalidInput
from lora_runtime.lora.formats import Kronecker
from lora_runtime.lora.library import is_elsewhere, report_of
from lora_runtime.references import measure_reference, shrink_size
from lora_runtime.registry.finetune import Finetune
from lora_runtime.values import LoraRef, Reference, RenderRequest

Language: TypeAlias = Literal["curl", "python"]
Fields: TypeAlias = Mapping[str, str | int | float]

_POCKET: Final = Path(__file__).parent / "pocket" / "weights"


def write_program(url: str, fields: Fields, language: Language, *, images: Mapping[str, str] | None = None) -> str:
    """Return a program that posts `fields` to `url`, waits, and prints where the image is.

    `images` are files of the caller's by field, sent as base64.
    """
    if language == "curl":
        # In the same $( ): without its images nothing is sent, and `cat` says which one is missing.
        first = f"cat {shlex.join(images.values())} > /dev/null && " if images else ""
        return _CURL.format(first=first, url=shlex.quote(url), body=_write_shell_body(fields, images or {}))
    imports = "import base64, os, time, requests\nfrom pathlib import Path" if images else "import os, time, requests"
    return _PYTHON.format(imports=imports, url=_python_string(url), body=_write_python_body(fields, images or {}))


def write_example(finetune: Finetune, base_url: str, language: Language) -> str:
    """Return the copy-paste example of a finetune: a program that renders one image and prints where it is.

    The key is read from BFL_API_KEY; without keys on the server it may be anything.
    """
    fields: Fields = {
        "prompt": write_prompt(finetune),
        FINETUNE_ID: finetune.id,
        FINETUNE_STRENGTH: float(finetune.recommended_strength or 1),
    }
    return write_program(f"{base_url}{finetune.endpoint.path}", fields, language)


def write_prompt(finetune: Finetune) -> str:
    """Return a prompt to begin with, which the base understands and which has the trigger phrase."""
    phrase = finetune.trigger_phrase
    if find_weights(finetune.weights).bundled:
        return f"a {phrase or 'red cat'} in the snow"
    return f"A portrait{f' of {phrase}' if phrase else ''} in a sunlit studio, soft key light"


def write_api_program(
    request: RenderRequest, language: Language, *, base_url: str, finetune_id: str | None, output_format: str = "png"
) -> str:
    """Return a program that asks the server at `base_url` for the image of `request`.

    Reference images stand in it as the files `image-1.png` and so on.

    Raises:
        InvalidInput: The API does not take what was rendered; the message says which field.
        Unavailable: The API has no such endpoint.
    """
    if request.lora is not None and finetune_id is None:
        raise InvalidInput(
            f"The API knows no finetune with the file of {request.lora.name}. Add it on the Finetunes tab first."
        )
    fields = {**list_fields(request, finetune_id), "output_format": output_format}
    names = _name_images(request.references)
    images = dict(zip(IMAGE_FIELDS, names, strict=False))
    program = write_program(f"{base_url}{find_endpoint(request).path}", fields, language, images=images)
    return f"{_write_note(names)}{program}"


def write_diffusers_program(request: RenderRequest, *, with_paths: bool = True) -> str:
    """Return a program for plain diffusers that renders the image of `request` and saves it as image.png.

    `with_paths` names the files of this machine; otherwise the reader puts their own in.

    Raises:
        InvalidInput: diffusers cannot load the LoRA, or its file is not on this machine.
        NotFound, LoraError: The file has gone or is damaged.
    """
    weights = find_weights(request.weights)
    shapes = [measure_reference(reference) for reference in request.references]
    rounded = request.precision == "fp8"
    parts = [
        _write_note(_name_images(request.references))
        + _write_imports(weights, with_images=bool(shapes), rounded=rounded),
        _write_pipeline(weights, request, with_paths=with_paths),
        *([_ROUNDING] if rounded else []),
        *([_write_lora(request.lora, request, with_paths=with_paths)] if request.lora is not None else []),
        *([_write_images(shapes, weights)] if shapes else []),
        _write_call(weights, request),
    ]
    return "\n".join(parts)


def _write_shell_body(fields: Fields, images: Mapping[str, str]) -> str:
    """The arguments of curl that send the body."""
    body = shlex.quote(_json(fields))
    if not images:
        return f"-d {body}"
    # The images are too long for an argument, so jq reads them from files.
    files = " \\\n    ".join(
        f"--rawfile {field} <(base64 < {shlex.quote(name)} | tr -d '\\n')" for field, name in images.items()
    )
    added = ", ".join(f"{field}: ${field}" for field in images)
    return f"--data-binary @<(jq {files} \\\n    '. + {{{added}}}' <<< {body})"


def _write_python_body(fields: Fields, images: Mapping[str, str]) -> str:
    lines = [f"        {_python_string(name)}: {_python_literal(value)}," for name, value in fields.items()]
    lines += [
        f"        {_python_string(field)}: base64.b64encode(Path({_python_string(name)}).read_bytes()).decode(),"
        for field, name in images.items()
    ]
    return "{\n" + "\n".join(lines) + "\n    }"


def _write_imports(weights: Weights, *, with_images: bool, rounded: bool) -> str:
    lines = ["import torch", f"from diffusers import {_pipeline_class(weights)}"]
    if rounded:
        lines.append("from diffusers.quantizers.bfl.utils import BFLFP8RLinear, quantize_fp8r")
    if with_images:
        lines.append("from PIL import Image, ImageOps")
    return "\n".join([*lines, ""])


def _write_pipeline(weights: Weights, request: RenderRequest, *, with_paths: bool) -> str:
    place = str(weights.hub_id) if weights.hub_id else _name_pocket(weights, with_paths=with_paths)
    dtype = "float32" if request.precision == "fp32" else "bfloat16"
    return (
        f"pipeline = {_pipeline_class(weights)}.from_pretrained({_python_string(place)}, dtype=torch.{dtype})\n"
        'pipeline.to("cuda" if torch.cuda.is_available() else "cpu")\n'
    )


def _write_lora(lora: LoraRef, request: RenderRequest, *, with_paths: bool) -> str:
    if is_elsewhere(lora):
        raise InvalidInput(f"The file of {lora.name} is only at the server that rendered the image, not here.")
    if lora.adapter is not None:
        raise InvalidInput(f"{lora.name} is one of several adapters in its file. Save it alone, then copy the program.")
    report = report_of(lora)
    if any(isinstance(layer.factors, Kronecker) for layer in report.layers):
        raise InvalidInput(f"{lora.name} is a LoKr, which diffusers cannot load. Use curl or Python instead.")
    file = str(lora.path) if with_paths else f"{lora.name.rpartition('/')[2]}.safetensors"
    return _LORA.format(
        file=_python_string(file),
        sha256=lora.sha256,
        layers=len(report.layers),
        strength=_python_literal(float(request.strength)),
    )


def _write_images(sizes: Sequence[tuple[int, int]], weights: Weights) -> str:
    """Open the references as the model reads them: upright, in RGB, no larger than it takes."""
    lines = ["images = ["]
    for number, size in enumerate(sizes, 1):
        small = shrink_size(size, weights)
        resized = f".resize({small}, Image.Resampling.LANCZOS)" if small != size else ""
        lines.append(f'    ImageOps.exif_transpose(Image.open("image-{number}.png")).convert("RGB"){resized},')
    return "\n".join([*lines, "]", ""])


def _write_call(weights: Weights, request: RenderRequest) -> str:
    arguments = {
        **({"image": "images"} if request.references else {}),
        "prompt": _python_string(request.prompt),
        "width": str(request.width),
        "height": str(request.height),
        "num_inference_steps": str(request.steps),
        **({} if weights.kv_cache else {"guidance_scale": _python_literal(request.guidance)}),
        "max_sequence_length": str(weights.max_sequence_length),
        "text_encoder_out_layers": str(weights.text_encoder_out_layers),
        "generator": f'torch.Generator("cpu").manual_seed({request.seed})',
    }
    lines = [f"    {name}={value}," for name, value in arguments.items()]
    return "\n".join(["image = pipeline(", *lines, ").images[0]", 'image.save("image.png")', ""])


def _pipeline_class(weights: Weights) -> str:
    return "Flux2KleinKVPipeline" if weights.kv_cache else "Flux2KleinPipeline"


def _name_pocket(weights: Weights, *, with_paths: bool) -> str:
    return str(_POCKET / weights.name) if with_paths else f"lora_runtime/pocket/weights/{weights.name}"


def _write_note(images: Sequence[str]) -> str:
    return f"# Put the reference images beside this program: {', '.join(images)}\n" if images else ""


def _name_images(references: Sequence[Reference]) -> list[str]:
    return [f"image-{number}.png" for number in range(1, len(references) + 1)]


def _json(fields: Fields) -> str:
    printable = all(value.isprintable() for value in fields.values() if isinstance(value, str))
    return json.dumps(fields, indent=2, ensure_ascii=not printable)


def _python_string(text: str) -> str:
    """Double quotes as the rest of the program has them; Python's own escapes where a character cannot be seen."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)


def _python_literal(value: str | int | float) -> str:
    return _python_string(value) if isinstance(value, str) else repr(value)


_CURL = """\
# Submit (in bash or zsh, with curl and jq)
RESPONSE=$({first}curl -s -X POST {url} \\
  -H "x-key: $BFL_API_KEY" \\
  -H 'Content-Type: application/json' \\
  {body})
POLLING_URL=$(jq -r '.polling_url // empty' <<< "$RESPONSE")
[ -n "$POLLING_URL" ] || echo "$RESPONSE"

# Poll
while [ -n "$POLLING_URL" ]; do
  RESULT=$(curl -s "$POLLING_URL" -H "x-key: $BFL_API_KEY")
  case $(jq -r '.status' <<< "$RESULT") in
    Ready) jq -r '.result.sample' <<< "$RESULT"; break ;;
    Pending | Reasoning | Generating) sleep 1 ;;
    *) echo "$RESULT"; break ;;
  esac
done
"""

_PYTHON = """\
# pip install requests
{imports}

headers = {{"x-key": os.environ.get("BFL_API_KEY", "")}}
response = requests.post(
    {url},
    headers=headers,
    json={body},
)
response.raise_for_status()
task = response.json()

while True:
    time.sleep(1)
    result = requests.get(task["polling_url"], headers=headers).json()
    if result["status"] == "Ready":
        print(result["result"]["sample"])
        break
    if result["status"] not in ("Pending", "Reasoning", "Generating"):
        print(result)
        break
"""

_ROUNDING = """\
# FP8 as BFL's own checkpoints have it: the blocks' matrices, one scale per row.
for blocks in (pipeline.transformer.transformer_blocks, pipeline.transformer.single_transformer_blocks):
    for path, layer in list(blocks.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            rounded = BFLFP8RLinear(
                layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16, device="meta"
            )
            weight, rounded.weight_scale = quantize_fp8r(layer.weight.detach())
            rounded.weight = torch.nn.Parameter(weight, requires_grad=False)
            blocks.set_submodule(path, rounded)
"""

_LORA = """\
# SHA-256 {sha256}
pipeline.load_lora_weights({file}, adapter_name="klein_lab")
loaded = sum(name.endswith("lora_A.klein_lab.weight") for name, _ in pipeline.transformer.named_parameters())
if loaded != {layers}:
    raise SystemExit(f"diffusers loaded {{loaded}} of {layers} layers: it does not read this trainer's spelling.")
pipeline.set_adapters(["klein_lab"], [{strength}])
"""
