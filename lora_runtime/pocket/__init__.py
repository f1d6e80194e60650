"""The pocket klein: a real FLUX.2 klein at toy size, with LoRAs and a judge, shipped in the repository.

Only paths live here, so importing this package costs nothing. The folders under `weights/` load with plain
`diffusers.Flux2KleinPipeline.from_pretrained`; `build/` is what made them, and README.md says how well they draw.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

WEIGHTS_DIR = _HERE / "weights"
LORAS_DIR = _HERE / "loras"
JUDGE_DIR = _HERE / "judge"
CLASSIFIER_DIR = _HERE / "classifier"

WEIGHTS = ("pocket", "pocket-base")
LORAS = ("style", "subject", "overtrained")
TRAINING = LORAS_DIR / "golden-frame"
"""The bundled training run: six checkpoints of one LoRA that ends by copying what it was shown."""


def weights_folder(name: str) -> Path:
    """Return the diffusers folder of "pocket" or "pocket-base".

    Raises:
        KeyError: there are no such weights.
    """
    if name not in WEIGHTS:
        raise KeyError(f"The pocket klein has the weights {', '.join(WEIGHTS)}; not {name!r}.")
    return WEIGHTS_DIR / name


def lora_path(name: str) -> Path:
    """Return the file of one of `LORAS`.

    Raises:
        KeyError: there is no such LoRA.
    """
    if name not in LORAS:
        raise KeyError(f"The pocket klein has the LoRAs {', '.join(LORAS)}; not {name!r}.")
    return LORAS_DIR / f"{name}.safetensors"
