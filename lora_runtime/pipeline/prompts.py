"""Prompts -> embeddings, each computed once: kept in memory, and on disk for the next start.

klein reads hidden states from the middle of its Qwen3 (layers 9, 18 and 27 of 36), so the layers above them and the
output layer are never loaded: the embeddings are the same bit for bit, a third of the work and up to 5 GB are saved.

An embedding depends on the checkpoint, the numbers it is computed in and the prompt; that is its key on disk. The files
are a cache, not a record: one that cannot be read or written is a line in the log, and the prompt is encoded again.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from lora_runtime.catalogue import Weights

logger = logging.getLogger(__name__)

MEMORY_BYTES: Final = 512 * 1024**2
DISK_BYTES: Final = 2 * 1024**3
_TENSOR: Final = "embedding"


def load_text_encoder(folder: Path, weights: Weights, dtype: torch.dtype) -> Any:
    """Load the text encoder of a diffusers folder up to the last layer that klein reads.

    Raises:
        OSError, ValueError: The folder holds no Qwen3, or not all of it.
    """
    config = Qwen3Config.from_pretrained(folder, subfolder="text_encoder", local_files_only=True)
    last = weights.text_encoder_out_layers[-1]
    cut = last < config.num_hidden_layers
    if cut:
        config.num_hidden_layers = last
        config.layer_types = config.layer_types[:last]
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would list the layers above as unexpected
    try:
        encoder = Qwen3ForCausalLM.from_pretrained(
            folder, subfolder="text_encoder", config=config, dtype=dtype, local_files_only=True
        )
    finally:
        transformers_logging.set_verbosity(level)
    if cut:
        # The last state of a whole Qwen3 is normalised, those before are not; ours is one of those before.
        encoder.model.norm = torch.nn.Identity()
    encoder.lm_head = torch.nn.Identity()
    return encoder


@dataclass(frozen=True, kw_only=True)
class DiskCache:
    """Where embeddings are kept, and what they depend on beside the prompt: checkpoint, dtype, length, layers."""

    folder: Path
    key: tuple[str, ...]

    def read(self, prompt: str) -> torch.Tensor | None:
        """Return the embedding of `prompt` on the CPU, or None when there is none that can be read."""
        path = self._path(prompt)
        try:
            embedding: torch.Tensor = load_file(path)[_TENSOR]
            os.utime(path)  # used now: the files used least recently are deleted first
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError) as error:
            logger.warning("The prompt embedding %s cannot be read (%s); it is made again.", path, error)
            return None
        return embedding

    def write(self, prompt: str, embedding: torch.Tensor) -> None:
        """Keep an embedding, and delete what was not used for longest when there are too many."""
        path = self._path(prompt)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            data = save({_TENSOR: embedding.contiguous().cpu()})
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".part-", delete=False) as file:
                file.write(data)
            Path(file.name).replace(path)
            self._shrink()
        except OSError as error:
            logger.warning("A prompt embedding could not be kept in %s: %s", self.folder, error)

    def _path(self, prompt: str) -> Path:
        name = json.dumps([*self.key, prompt], ensure_ascii=True)
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()}.safetensors"

    def _shrink(self) -> None:
        kept = [(path, path.stat()) for path in self.folder.glob("*.safetensors")]
        total = sum(status.st_size for _, status in kept)
        for path, status in sorted(kept, key=lambda entry: entry[1].st_mtime):
            if total <= DISK_BYTES:
                return
            path.unlink(missing_ok=True)
            total -= status.st_size


class Prompts:
    """Embeddings by prompt. Each is encoded alone, so that it does not depend on its neighbours in a batch."""

    def __init__(self, encode: Callable[[str], torch.Tensor], *, disk: DiskCache | None) -> None:
        self._encode = encode
        self._disk = disk
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings of `prompts`: (B, L, D)."""
        embeddings = torch.cat([self._embed(prompt) for prompt in prompts])
        while sum(kept.nbytes for kept in self._known.values()) > MEMORY_BYTES:
            self._known.popitem(last=False)
        return embeddings

    def _embed(self, prompt: str) -> torch.Tensor:
        if prompt not in self._known:
            found = self._disk.read(prompt) if self._disk else None
            if found is None:
                found = self._encode(prompt)
                if self._disk:
                    self._disk.write(prompt, found)
            self._known[prompt] = found
        self._known.move_to_end(prompt)
        return self._known[prompt]
