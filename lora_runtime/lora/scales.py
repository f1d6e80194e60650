"""alpha/rank of a layer, wherever the trainer wrote it down.

kohya's family stores an `.alpha` tensor per layer; it wins. PEFT stores one table for the file: `lora_alpha`, `r`,
`use_rslora`, and patterns for single modules. diffusers puts that table into the header, PEFT into a file of its own
beside the matrices (`file.py` folds it into the metadata). Without any of them the scale is 1.

The table is foreign text: its numbers are checked, and its patterns only run when they cannot run away.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_runtime.errors import LoraUnreadable, LoraUnsupported
from lora_runtime.lora.file import ADAPTER_CONFIG, LoraFile, read_array

_SAFE_PATTERN = re.compile(r"\^?[\w.\\|*]{1,300}\$?")
_MAX_STARS = 3  # a pattern with more of them could take minutes on a name made for it
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""PEFT initialisations that change the base weights too. Source: peft LoraConfig.init_lora_weights."""


class Scales:
    """The scales of one file.

    Raises:
        LoraUnreadable: The file's table of settings is damaged.
        LoraUnsupported: The table says that the file needs more than its matrices.
    """

    def __init__(self, file: LoraFile) -> None:
        self._file = file
        self._config = _read_config(file)
        _refuse_config(file, self._config)

    @property
    def stated(self) -> bool:
        """Whether the file has a table of settings."""
        return bool(self._config)

    def low_rank(self, names: Sequence[str], rank: int, alpha_key: str | None) -> float:
        """The scale of B @ A. `names` are the module's names, diffusers' and the file's own; patterns may use either.

        Source: peft/tuners/lora/layer.py, update_layer: alpha/r, or alpha/sqrt(r) with rsLoRA.
        """
        if alpha_key is not None:
            return self._read_alpha(alpha_key) / rank
        alpha = self._number("alpha_pattern", names, "lora_alpha")
        self._require_rank(names, rank)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    def kronecker(self, names: Sequence[str], rank: int | None, alpha_key: str | None) -> float:
        """The scale of kron(w1, w2). `rank` is None where both factors are stored whole.

        LyCORIS and AI-Toolkit scale by alpha/rank only where a factor is a product; beside two whole factors their
        alpha is a placeholder (AI-Toolkit writes 1e10). PEFT always scales by alpha/r of its table.
        Source: lycoris/modules/lokr.py, LokrModule.__init__; peft/tuners/lokr/layer.py, update_layer.
        """
        if alpha_key is not None:
            return 1.0 if rank is None else self._read_alpha(alpha_key) / rank
        alpha = self._number("alpha_pattern", names, "alpha")
        r = self._number("rank_pattern", names, "r")
        return 1.0 if alpha is None or not r else alpha / r

    def _read_alpha(self, key: str) -> float:
        """The one number of an `.alpha` tensor."""
        array = read_array(self._file, key)
        if array.size != 1:
            raise LoraUnreadable(
                f"{self._file.path.name}: {key!r} should be one number, but has shape {list(array.shape)}."
            )
        alpha = float(array.item())
        if not math.isfinite(alpha):
            raise LoraUnreadable(f"{self._file.path.name}: {key!r} is {alpha}. Export the LoRA again.")
        return alpha

    def _require_rank(self, names: Sequence[str], rank: int) -> None:
        """alpha/r means nothing when the table's r is not the matrices' own."""
        stated = self._number("rank_pattern", names, "r")
        if stated is not None and stated != rank:
            raise LoraUnreadable(
                f"{self._file.path.name}: its settings say rank {stated:g} for {names[0]}, its matrices have rank "
                f"{rank}. The settings belong to another file: put the right adapter_config.json beside it."
            )

    def _number(self, patterns: str, names: Sequence[str], default: str) -> float | None:
        """PEFT's rule: a pattern is a regular expression that must match the end of a module's name."""
        table = self._config.get(patterns) or {}
        if not isinstance(table, dict):
            raise LoraUnreadable(f"{self._file.path.name}: {patterns} of its settings is not a table.")
        for pattern, value in table.items():
            if any(_matches(pattern, name, self._file) for name in names):
                return self._check_number(f"{patterns} of {pattern}", value)
        value = self._config.get(default)
        return None if value is None else self._check_number(default, value)

    def _check_number(self, what: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise LoraUnreadable(f"{self._file.path.name}: {what} is {value!r}, not a number. Export the LoRA again.")
        return float(value)


def _matches(pattern: str, name: str, file: LoraFile) -> bool:
    if not _SAFE_PATTERN.fullmatch(pattern) or pattern.count("*") > _MAX_STARS:
        raise LoraUnreadable(
            f"{file.path.name}: the pattern {pattern[:80]!r} of its settings is more than a module's name. "
            "Write the full names of the modules there."
        )
    try:
        return re.match(rf"(?:.*\.)?(?:{pattern})$", name) is not None
    except re.error as error:
        raise LoraUnreadable(f"{file.path.name}: {pattern!r} is not a pattern: {error}.") from error


def _read_config(file: LoraFile) -> Mapping[str, Any]:
    """The file's table of settings; adapter_config.json before the header's own. Empty when it has none."""
    key = ADAPTER_CONFIG if ADAPTER_CONFIG in file.metadata else "lora_adapter_metadata"
    try:
        config: Any = json.loads(file.metadata.get(key, "{}"))
    except (ValueError, RecursionError) as error:
        raise LoraUnreadable(f"{file.path.name}: {key} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise LoraUnreadable(f"{file.path.name}: {key} is not a JSON object.")
    return {name.removeprefix("transformer."): value for name, value in config.items()}


def _refuse_config(file: LoraFile, config: Mapping[str, Any]) -> None:
    """Refuse what the settings say and the keys do not show."""
    name = file.path.name
    kind = config.get("peft_type")
    if kind not in (None, "LORA", "LOKR"):
        raise LoraUnsupported(f"{name} is a PEFT adapter of type {kind}. Export it as a plain LoRA.")
    if config.get("use_dora"):
        raise LoraUnsupported(
            f"{name} is a DoRA: its settings say use_dora, and its effect is not proportional to a strength. "
            "Train without DoRA, or extract the trained difference as a plain LoRA."
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASES):
        raise LoraUnsupported(
            f"{name} was started with {start}, which changes the base model too, so it is only right on that changed "
            "base. Save it with PEFT's path_initial_model_for_weight_conversion."
        )
