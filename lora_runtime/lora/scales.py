"""alpha/rank of a layer, wherever the trainer wrote it down.

1. An `.alpha` tensor of the layer wins (kohya's family).
2. PEFT's table for the file: `lora_alpha`, `r`, `use_rslora`, and patterns for single modules. diffusers puts it into
   the header (`lora_adapter_metadata`), PEFT into a file beside the matrices (`file.py` folds it into the metadata).
3. Plain fields of the header: `lora_alpha`, `network_alpha` or `alpha`, and perhaps `r` or `rank`. They act like PEFT's
   table. Source: diffusers' loader of LightX2V's adapters and SGLang's infer alpha from these three.
4. Without any of them the scale is 1. `ss_network_alpha` is only what kohya's trainer was asked for: it stays in the
   header when a converter has multiplied alpha into the matrices. So it does not act, and is reported.

The table is foreign text: its numbers are checked, and its patterns only run when they cannot run away.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_runtime.errors import LoraUnreadable, LoraUnsupported
from lora_runtime.lora.file import ADAPTER_CONFIG, LoraFile, read_number
from lora_runtime.lora.module_names import TEXT_ENCODER
from lora_runtime.written import list_some, quote, shorten

_TABLE = "lora_adapter_metadata"
_HEADER = "the header"
_ALPHAS = ("lora_alpha", "network_alpha", "alpha")
_RANKS = ("r", "rank", "lora_rank", "network_rank", "network_dim")
_ABSENT = ("", "none", "null")

_SAFE_PATTERN = re.compile(r"\^?[\w.\\|*+()?:-]{1,300}\$?")
_RUNAWAY = re.compile(r"\)[*+?{]|\(\?[^:]|[*+?][*+]")
"""A repeated group, a look-around, a possessive repetition: what could make a pattern take minutes on a name."""
_MAX_REPEATS = 3
_MAX_PATTERNS = 1000
_MAX_NAME = 120
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
        self._source, self._config = _read_config(file)
        self._notices = [] if self._config else _read_header(file, self._config)
        self._patterns = {name: _read_patterns(file, self._config, name) for name in ("alpha_pattern", "rank_pattern")}
        _refuse_config(file, self._config)

    @property
    def stated(self) -> bool:
        """Whether the file has a table of settings."""
        return bool(self._config)

    def notices(self, *, has_alphas: bool) -> list[str]:
        """What the header says of alpha and does not act; `has_alphas` says that layers have their own."""
        if has_alphas:
            return []
        asked = self._file.metadata.get("ss_network_alpha", "").strip()
        dimension = self._file.metadata.get("ss_network_dim", "").strip()
        if self.stated or asked.lower() in _ABSENT or asked == dimension or _to_number(asked) is None:
            return self._notices
        if _to_number(asked) == _to_number(dimension):
            return self._notices
        return [
            *self._notices,
            f"The trainer's note ss_network_alpha {shorten(asked, 24)} does not act: no layer has an alpha, so it is "
            "taken to be in the matrices, and alpha = rank.",
        ]

    def low_rank(self, names: Sequence[str], rank: int, alpha_key: str | None) -> float:
        """The scale of B @ A. `names` are the module's names, diffusers' and the file's own; patterns may use either.

        Source: peft/tuners/lora/layer.py, update_layer: alpha/r, or alpha/sqrt(r) with rsLoRA.
        """
        if alpha_key is not None:
            return read_number(self._file, alpha_key) / rank
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
            return 1.0 if rank is None else read_number(self._file, alpha_key) / rank
        if self._source == _HEADER:
            alpha = self._number("alpha_pattern", names, "lora_alpha")
            return 1.0 if rank is None or alpha is None else alpha / rank
        alpha = self._number("alpha_pattern", names, "alpha")
        r = self._number("rank_pattern", names, "r")
        return 1.0 if alpha is None or not r else alpha / r

    def _require_rank(self, names: Sequence[str], rank: int) -> None:
        """alpha/r means nothing when the table's r is not the matrices' own."""
        stated = self._number("rank_pattern", names, "r")
        if stated is None or stated == rank:
            return
        remedy = (
            "They belong to another file: put the right adapter_config.json beside it."
            if self._source == ADAPTER_CONFIG
            else "It was resized or merged after training, and its alpha may no longer hold: save it with the rank and "
            "alpha that it has now, or without them in the header."
        )
        whose = "its settings say" if self._source == ADAPTER_CONFIG else f"{self._source} says"
        raise LoraUnreadable(
            f"{self._file.name}: {whose} rank {stated:g} for {names[0]}, its matrices have rank {rank}. {remedy}"
        )

    def _number(self, patterns: str, names: Sequence[str], default: str) -> float | None:
        """PEFT's rule: a pattern is a regular expression that must match the end of a module's name."""
        for pattern, (text, value) in self._patterns[patterns].items():
            if any(pattern.match(name[:_MAX_NAME]) for name in names):
                return self._check_number(f"{patterns} of {quote(text)}", value)
        value = self._config.get(default)
        return None if value is None else self._check_number(default, value)

    def _check_number(self, what: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
            raise LoraUnreadable(f"{self._file.name}: {what} is {quote(value)}, not a number. Export the LoRA again.")
        return float(value)


def _read_patterns(
    file: LoraFile, config: Mapping[str, Any], field: str
) -> Mapping[re.Pattern[str], tuple[str, object]]:
    """A table of patterns, each made ready once: pattern -> (its text, its number)."""
    table = config.get(field) or {}
    if not isinstance(table, dict):
        raise LoraUnreadable(f"{file.name}: {field} of its settings is not a table. Export it again.")
    if len(table) > _MAX_PATTERNS:
        raise LoraUnreadable(f"{file.name}: {field} of its settings has {len(table)} entries. Export it again.")
    return {_compile(text, file): (text, value) for text, value in table.items()}


def _compile(text: str, file: LoraFile) -> re.Pattern[str]:
    repeats = sum(text.count(sign) for sign in "*+?") - text.count("(?:")
    if not _SAFE_PATTERN.fullmatch(text) or _RUNAWAY.search(text) or repeats > _MAX_REPEATS:
        raise LoraUnreadable(
            f"{file.name}: the pattern {quote(text)} of its settings is more than a module's name. "
            "Write the full names of the modules there."
        )
    try:
        return re.compile(rf"(?:.*\.)?(?:{text})$")
    except re.error as error:
        raise LoraUnreadable(
            f"{file.name}: {quote(text)} of its settings is not a pattern. Write the full names of the modules there."
        ) from error


def _read_config(file: LoraFile) -> tuple[str, dict[str, Any]]:
    """Where the file's settings stand, and the settings; adapter_config.json before the header's own."""
    key = ADAPTER_CONFIG if ADAPTER_CONFIG in file.metadata else _TABLE
    if key not in file.metadata:
        return _HEADER, {}
    try:
        config: Any = json.loads(file.metadata[key])
    except (ValueError, RecursionError) as error:
        raise LoraUnreadable(f"{file.name}: {key} of its settings is not JSON. Export it again.") from error
    if not isinstance(config, dict):
        raise LoraUnreadable(f"{file.name}: {key} is not a JSON object. Export it again.")
    spaces = _split_spaces(config)
    return key, spaces.get("transformer") or spaces.get("") or (next(iter(spaces.values())) if len(spaces) == 1 else {})


def _split_spaces(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Fields by the part of the pipeline that they are for: `transformer.r`, `text_encoder.r`; the latter go."""
    spaces: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        space, _, field = name.rpartition(".")
        if not TEXT_ENCODER.search(f"{space}."):
            spaces.setdefault(space, {})[field] = value
    return spaces


def _read_header(file: LoraFile, config: dict[str, Any]) -> list[str]:
    """Fill `config` with alpha and rank of the header's plain fields; return what there is to say about them."""
    found: dict[str, dict[str, float]] = {}
    notices = []
    for space, fields in _split_spaces(file.metadata).items():
        for kind, names in (("lora_alpha", _ALPHAS), ("r", _RANKS)):
            for name in (name for name in names if fields.get(name, "").strip().lower() not in _ABSENT):
                number = _to_number(fields[name])
                if number is None:
                    notices.append(f"{name} of the header is {quote(fields[name], 40)}, not a number: it does not act.")
                elif found.setdefault(space, {}).setdefault(kind, number) != number:
                    raise LoraUnreadable(
                        f"{file.name}: its header states {kind} twice, as {found[space][kind]:g} and as {number:g} "
                        f"({name}). Save it with one of them."
                    )
    settings = [fields for fields in found.values() if "lora_alpha" in fields]
    if any(fields != settings[0] for fields in settings):
        stated = list_some(sorted({f"{fields['lora_alpha']:g}" for fields in settings}))
        raise LoraUnreadable(f"{file.name}: its header states several alphas ({stated}). Save it with one of them.")
    config.update(settings[0] if settings else {})
    return notices


def _to_number(text: str) -> float | None:
    try:
        number = float(text) if len(text) < 40 else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _refuse_config(file: LoraFile, config: Mapping[str, Any]) -> None:
    """Refuse what the settings say and the keys do not show."""
    name = file.name
    kind = config.get("peft_type")
    if kind not in (None, "LORA", "LOKR"):
        raise LoraUnsupported(f"{name} is a PEFT adapter of type {shorten(str(kind))}. Export it as a plain LoRA.")
    if config.get("use_dora"):
        raise LoraUnsupported(
            f"{name} is a DoRA: its settings say use_dora, and its effect is not proportional to a strength. "
            "Train without DoRA, or extract the trained difference as a plain LoRA."
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASES):
        raise LoraUnsupported(
            f"{name} was started with {quote(start)}, which changes the base model too, so it is only right on that "
            "changed base. Save it with PEFT's path_initial_model_for_weight_conversion."
        )
