"""Mutate LoRA files and see that each is taken and can be attached, or refused in a short sentence.

`python -m tests.mutate_loras --count 10000 --seed 1` prints one line of JSON: how many were accepted and refused, and
what broke a promise. A mutant depends on its seed and number alone, so one that broke something is made again by
`--first NUMBER --count 1`.
"""

import argparse
import copy
import json
import random
import re
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lora_runtime.catalogue import POCKET
from lora_runtime.errors import KleinLabError
from lora_runtime.lora.check import check_file
from lora_runtime.lora.description import describe_file
from lora_runtime.lora.library import find_lora
from lora_runtime.lora.names import check_trigger
from lora_runtime.pipeline.batch import Model
from tests.lora_files import STYLES, make_adapter, make_lokr, write_lokr, write_styled
from tests.pocket_model import load_model

MAX_MESSAGE = 500
MAX_SECONDS = 2.0
"""Of processor time: the machine may be busy with something else."""


@dataclass(kw_only=True)
class Parts:
    """A safetensors file taken apart; a mutation changes any of it. `raw` stands for the whole where it is given."""

    header: dict[str, Any]
    data: bytearray
    text: bytes | None = None
    length: int | None = None
    raw: bytes | None = None

    def join(self) -> bytes:
        if self.raw is not None:
            return self.raw
        text = self.text if self.text is not None else json.dumps(self.header).encode()
        return struct.pack("<Q", len(text) if self.length is None else self.length) + text + bytes(self.data)


def take_apart(path: Path) -> Parts:
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return Parts(header=json.loads(raw[8:end]), data=bytearray(raw[end:]))


ODD = (
    True, False, None, -1, 0, 1, 1.0, 1.5, 2**31, 2**63, 2**64, 10**400, -(10**30), "", "8", "x" * 2000, "\ud800",
    "\0", [],
    [[]], {}, {"a": 1}, float("nan"), float("inf"), [True, False], [0, 0], [1, 2, 3], "ä", "F32", "../..", "0x10",
    "1e9",
)  # fmt: skip
WORDS = (
    "transformer.", "_orig_mod.", "module.", "model.", "base_model.model.", "diffusion_model.", "lora_unet_",
    "pipe.dit.",
    "ema.", "text_encoder.", "lora_te1_", "vae.", "controlnet.", "transformer_blocks.", "single_transformer_blocks.",
    "double_blocks.", "single_blocks.", ".lora_A", ".lora_B", ".lora_down", ".lora_up", ".weight", ".alpha", ".default",
    ".second", ".bias", ".diff", ".scalar", ".dora_scale", ".lokr_w1", ".lokr_w2_a", "_", "__", ".", "0", "7", "99999",
    "attn", "to_q", "img_attn", "qkv", "norm", "\ud800", "\0", "é", "x" * 300, "content_mode_blocks.",
    "layers.0.attention.",
)  # fmt: skip
FIELDS = (
    "alpha", "lora_alpha", "network_alpha", "r", "rank", "transformer.r", "transformer.lora_alpha", "ss_network_alpha",
    "ss_network_dim", "ss_tag_frequency", "modelspec.trigger_phrase", "trainedWords", "trigger_phrase", "base_model",
    "lora_adapter_metadata", "adapter_config.json", "ss_sd_model_name", "format", "\ud800", "",
)  # fmt: skip
TEXTS = (
    "16", "0", "-1", "nan", "inf", "1e999", "", "None", "Dynamic", "9" * 5000, "[", "{}", "[]", '["a", "b"]', "\0",
    "a\nb",
    "x" * 100_000, "\ud800", '{"r": 4, "lora_alpha": 8}', '{"transformer.r": 4, "transformer.lora_alpha": 1}',
    '{"r": 8}', '{"r": true}', '{"lora_alpha": "x"}', '{"lora_alpha": 1e308}', '{"use_dora": true}',
    '{"alpha_pattern": {"(a+)+b": 1}}', '{"alpha_pattern": {".*.*.*.*": 1}}', '{"rank_pattern": {"(q|k|v)": 2}}',
    '{"peft_type": "' + "L" * 5000 + '"}', '{"init_lora_weights": "pissa"}', '{"1_x": {"x": 1}}', "[" * 5000,
    '{"alpha_pattern": ' + json.dumps({f"m{number}": 1 for number in range(2000)}) + "}",
    '{"lora_alpha": ' + "9" * 5000 + "}",
)  # fmt: skip


def pick_key(parts: Parts, dice: random.Random) -> str:
    return dice.choice([key for key in parts.header if key != "__metadata__"])


def rename(parts: Parts, dice: random.Random) -> None:
    """Put a word into a key, take one out, or double a part of it; of one key or of all alike."""
    word, how, chosen = dice.choice(WORDS), dice.randrange(4), pick_key(parts, dice)
    everywhere = dice.random() < 0.7

    def change(key: str) -> str:
        if key == "__metadata__" or not (everywhere or key == chosen):
            return key
        if how == 0:
            return word + key
        if how == 1:
            return key + word
        if how == 2:
            return key.replace(dice.choice(key.split(".")), "", 1)
        place = dice.choice([found.start() for found in re.finditer(r"[._]|$", key)])
        return key[:place] + word + key[place:]

    parts.header = {change(key): entry for key, entry in parts.header.items()}


def change_entry(parts: Parts, dice: random.Random) -> None:
    entry = parts.header[pick_key(parts, dice)]
    field = dice.choice(["dtype", "shape", "data_offsets", "extra"])
    value = copy.deepcopy(dice.choice(ODD))
    if field != "dtype" and isinstance(entry.get(field), list) and entry[field] and dice.random() < 0.6:
        entry[field][dice.randrange(len(entry[field]))] = value
    else:
        entry[field] = dice.choice(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "U16", value])


def retype(parts: Parts, dice: random.Random) -> None:
    """Read the bytes of a tensor as another type, its shape made to fit."""
    entry = parts.header[pick_key(parts, dice)]
    bytes_each = {
        "F32": 4,
        "F16": 2,
        "BF16": 2,
        "F64": 8,
        "I32": 4,
        "I64": 8,
        "U8": 1,
        "F8_E5M2": 1,
        "BOOL": 1,
        "U16": 2,
    }
    dtype = dice.choice(sorted(bytes_each))
    total = entry["data_offsets"][1] - entry["data_offsets"][0]
    entry["dtype"], count = dtype, total // bytes_each[dtype]
    rows = dice.choice([1, 2, 3, 4, 8, 256])
    entry["shape"] = dice.choice([[count], [rows, count // rows], [count // rows, rows], [rows, count // rows, 1, 1]])


def write_numbers(parts: Parts, dice: random.Random) -> None:
    start, end = parts.header[pick_key(parts, dice)]["data_offsets"]
    value = dice.choice([0.0, float("nan"), float("inf"), -float("inf"), 1e-45, 3e38, -3e38, 1e20])
    count = dice.choice([1, (end - start) // 4])
    parts.data[start : start + 4 * count] = struct.pack("<f", value) * count


def drop_or_double(parts: Parts, dice: random.Random) -> None:
    key = pick_key(parts, dice)
    entry = parts.header[key]
    if dice.random() < 0.5 and len(parts.header) > 2:
        del parts.header[key]
        return
    new = dice.choice([key + ".copy", dice.choice(WORDS) + key, key.replace("A", "B"), key.replace("0", "1")])
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    parts.header[new] = copy.deepcopy(entry) | {"data_offsets": [len(parts.data), len(parts.data) + size]}
    parts.data += parts.data[entry["data_offsets"][0] : entry["data_offsets"][1]]


def write_metadata(parts: Parts, dice: random.Random) -> None:
    metadata = parts.header.setdefault("__metadata__", {})
    for _ in range(dice.randint(1, 3)):
        metadata[dice.choice(FIELDS)] = dice.choice(TEXTS) if dice.random() < 0.9 else copy.deepcopy(dice.choice(ODD))


def flip_bytes(parts: Parts, dice: random.Random) -> None:
    raw = bytearray(parts.join())
    end = min(len(raw), 8 + int.from_bytes(raw[:8], "little")) if dice.random() < 0.8 else len(raw)
    for _ in range(dice.choice([1, 1, 2, 8])):
        raw[dice.randrange(end)] = dice.randrange(256)
    parts.raw = bytes(raw)


def cut_or_grow(parts: Parts, dice: random.Random) -> None:
    raw = parts.join()
    place = dice.choice([dice.randrange(len(raw)), dice.randrange(min(64, len(raw))), len(raw) - 1])
    parts.raw = dice.choice(
        [raw[:place], raw + b"\0" * dice.choice([1, 8, 4096]), raw[place:], raw[:place] + bytes(len(raw) - place)]
    )


def encode_otherwise(parts: Parts, dice: random.Random) -> None:
    """A header that Python reads and the format does not allow."""
    text = json.dumps(parts.header, ensure_ascii=dice.random() < 0.5)
    name = dice.choice(
        ["utf-8-sig", "utf-16", "utf-32", "latin-1", "spaces", "digits", "floats", "signs", "comment", "twice"]
    )
    if name in ("spaces", "digits", "floats", "signs", "comment", "twice"):
        changes: Mapping[str, Callable[[str], str]] = {
            "spaces": lambda text: dice.choice([" ", "\n", "\t"]) * 8 + text + " " * 8,
            "digits": lambda text: re.sub(r"\d+\]", "9" * 4000 + "]", text, count=1),
            "floats": lambda text: re.sub(r"(\d+)\]", r"\1.0]", text, count=1),
            "signs": lambda text: re.sub(r"\[(\d+)", r"[-\1", text, count=1),
            "comment": lambda text: text + "//",
            "twice": lambda text: text[:-1] + ", " + text[1:],
        }
        parts.text = changes[name](text).encode("utf-8", "surrogatepass")
    else:
        parts.text = text.encode(name, "replace" if name == "latin-1" else "surrogatepass")


def change_length(parts: Parts, dice: random.Random) -> None:
    parts.length = dice.choice(
        [0, 1, 2, 7, 128, 2**31, 2**63, 2**64 - 1, len(parts.join()), len(json.dumps(parts.header)) - 1]
    )


def disguise(parts: Parts, dice: random.Random) -> None:
    parts.raw = dice.choice(
        [
            b"", b"\0" * 64, b"<!DOCTYPE html>" + b"x" * 100, b'{"error": "no"}', b'{"message": "' + b"m" * 5000,
            b"PK\x03\x04",
            b"\x80\x04\x95", b"\x1f\x8b\x08", b"version https://git-lfs.github.com/spec/v1\n", b"GGUF", b"text",
            b"[" * 5000,
            b"\xff" * 100, b'{"\xed\xa0\x80": 1}',
        ]
    )  # fmt: skip


def grow_header(parts: Parts, dice: random.Random) -> None:
    how = dice.randrange(4)
    if how == 0:
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        count = dice.choice([19_000, 21_000])
        parts.header |= {f"{dice.choice(WORDS[:8])}m{number}.lora_A.weight": entry for number in range(count)}
    elif how == 1:
        parts.header[pick_key(parts, dice)]["extra"] = [[] for _ in range(100_000)]
    elif how == 2:
        parts.header["_" * 200_000 + "img_in" + "." * 200_000 + ".lora_A.weight"] = parts.header[pick_key(parts, dice)]
    else:
        parts.text = b'{"a":' * dice.choice([500, 50_000])


MUTATIONS = (
    *[rename] * 8, *[change_entry] * 4, *[retype] * 2, *[write_numbers] * 2, *[drop_or_double] * 3,
    *[write_metadata] * 6,
    *[flip_bytes] * 4, cut_or_grow, cut_or_grow, *[encode_otherwise] * 3, change_length, disguise,
)  # fmt: skip
RARE = grow_header


def write_bases(folder: Path) -> list[Parts]:
    """Files that load, in several styles and with several adapters."""
    adapter = make_adapter(POCKET, rank=2)
    paths = [
        write_styled(folder / f"{number}.safetensors", adapter, STYLES[style])
        for number, style in enumerate(("diffusers", "ai-toolkit", "musubi", "DiffSynth", "raw PEFT"))
    ]
    paths.append(write_lokr(folder / "lokr.safetensors", make_lokr(POCKET, rank=2), alpha=1.0))
    two = {
        f"base_model.model.{key[:-2]}.lora_{key[-1]}.{name}.weight": tensor.clone()
        for name in ("one", "two")
        for key, tensor in adapter.items()
    }
    save_file(two, folder / "two.safetensors")
    top = {"img_in.lora_A.weight": torch.ones(2, POCKET.latent), "img_in.lora_B.weight": torch.ones(POCKET.hidden, 2)}
    save_file(top, folder / "top.safetensors", metadata={"lora_alpha": "4", "r": "2", "trigger_phrase": "ohwx"})
    return [take_apart(path) for path in (*paths, folder / "two.safetensors", folder / "top.safetensors")]


def mutate(bases: list[Parts], seed: int, number: int) -> tuple[str, bytes]:
    """The mutant of a seed and number, and what was done to it."""
    dice = random.Random(f"{seed} {number}")
    parts = copy.deepcopy(dice.choice(bases))
    chosen = [RARE] if dice.random() < 0.004 else [dice.choice(MUTATIONS) for _ in range(dice.choice([1, 1, 1, 2, 3]))]
    for change in chosen:
        try:
            change(parts, dice)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, struct.error):
            continue  # an earlier change left nothing for this one to change
        if parts.raw is not None:
            break
    return "+".join(change.__name__ for change in chosen), parts.join()


@dataclass(kw_only=True)
class Tally:
    """What became of the mutants; `broken` lists each that broke a promise."""

    outcomes: Counter[str]
    broken: list[str]
    slowest_s: float = 0.0
    longest: int = 0


def try_mutant(path: Path, model: Model, tally: Tally, label: str) -> None:
    started = time.process_time()
    try:
        report = check_file(path)
    except KleinLabError as error:
        report = None
        tally.outcomes[type(error).__name__] += 1
        texts = [str(error)]
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        tally.broken.append(f"{label}: crash {error!r:.300}")
        return
    seconds = time.process_time() - started
    tally.slowest_s = max(tally.slowest_s, seconds)
    if seconds > MAX_SECONDS:
        tally.broken.append(f"{label}: {seconds:.1f} s")
    if report is not None:
        tally.outcomes["accepted"] += 1
        texts = list(report.notices)
        try:
            if "pocket" in report.fits:
                model.adapters.detach(model.adapters.attach(find_lora(str(path))))
            if report.trigger_phrase is not None:
                check_trigger(report.trigger_phrase)
        except Exception as error:  # noqa: BLE001 - accepted, and cannot be rendered
            tally.broken.append(f"{label}: accepted, then {error!r:.300}")
    elif path.stat().st_size % 16 == 0:  # now and then: the rest of what `inspect` says
        texts += [text for value in describe_file(path).values() if isinstance(value, list) for text in map(str, value)]
    tally.longest = max(tally.longest, *map(len, texts), 0)
    for text in texts:
        if len(text) > MAX_MESSAGE or not text.isprintable():
            tally.broken.append(f"{label}: says {len(text)} characters: {text[:200]!r}")


def run(*, seed: int, first: int, count: int, say: Callable[[str], None] = lambda _text: None) -> Tally:
    tally = Tally(outcomes=Counter(), broken=[])
    model = load_model()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bases").mkdir()
        bases = write_bases(folder / "bases")
        for number in range(first, first + count):
            what, raw = mutate(bases, seed, number)
            path = folder / f"{number}.safetensors"
            path.write_bytes(raw)
            try_mutant(path, model, tally, f"{number} {what}")
            path.unlink()
            if number % 500 == 499:
                say(f"{number + 1 - first} of {count}: {tally.broken}")
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    asked = parser.parse_args()
    tally = run(seed=asked.seed, first=asked.first, count=asked.count, say=lambda text: print(text, flush=True))
    for line in tally.broken:
        print(line)
    print(
        json.dumps(
            {
                "mutants": asked.count,
                "seed": asked.seed,
                "outcomes": dict(tally.outcomes),
                "broken": len(tally.broken),
                "slowest_s": round(tally.slowest_s, 3),
                "longest_message": tally.longest,
            }
        )
    )


if __name__ == "__main__":
    main()
