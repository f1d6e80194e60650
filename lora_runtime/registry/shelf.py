"""The LoRAs that one organization can choose from: bundled, kept on this machine, and its finetunes.

A form comes from the network, so a name is only ever looked up here and never read as a path. Those in the home folder
belong to whoever sits at the machine; where visitors are kept apart, they are not shown.
"""

from dataclasses import replace
from pathlib import Path

from lora_runtime.errors import NotFound
from lora_runtime.lora.check import check_file
from lora_runtime.lora.library import BUNDLED, list_loras, make_name
from lora_runtime.lora.names import number_name
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.registry.finetunes import Finetune, Finetunes, Source
from lora_runtime.values import LoraRef
from lora_runtime.written import list_some, quote


class Shelf:
    """What there is to choose, with `finetunes` as the registry."""

    def __init__(self, finetunes: Finetunes) -> None:
        self._finetunes = finetunes

    def list(self, organization: str) -> tuple[LoraRef, ...]:
        """Return every LoRA once: the bundled ones, those of the home folder, own finetunes, shared ones."""
        kept = [ref for ref in list_loras() if organization == LOCAL or ref.path.parent == BUNDLED]
        taken = {ref.name for ref in kept}
        registered = [
            finetune.lora if finetune.id not in taken else _by_full_name(finetune)
            for finetune in self._finetunes.list(organization)
            if finetune.source is not Source.OFFICIAL
        ]
        return (*kept, *registered)

    def find(self, organization: str, name: str) -> LoraRef:
        """Return the LoRA that `organization` sees under `name`.

        Raises:
            NotFound: There is none; the message lists the names.
        """
        refs = {ref.name: ref for ref in self.list(organization)}
        if name not in refs:
            raise NotFound(f"There is no LoRA named {quote(name)}. Known names: {list_some(refs)}.")
        return refs[name]

    def keep(self, organization: str, path: Path, *, file_name: str | None = None) -> LoraRef:
        """Register an uploaded file as a finetune, for the base it was made for, under a name made of its own.

        A file that is there already is returned under the name it has.

        Raises:
            LoraError: It would not load.
            InvalidInput: It is too large.
            StorageFailed: The disk is full or not writable.
        """
        report = check_file(path)
        there = self.list(organization)
        same = next((ref for ref in there if ref.sha256 == report.file.sha256), None)
        if same is not None:
            return same
        taken = {ref.name for ref in there}
        wanted = make_name(file_name or path.name)
        name = next(each for each in number_name(wanted) if each not in taken)
        finetune = self._finetunes.add_file(organization, path, name=name, weights=report.fits[0])
        return self.find(organization, finetune.id)


def _by_full_name(finetune: Finetune) -> LoraRef:
    """A finetune whose name a file of the home folder has too."""
    return replace(finetune.lora, name=finetune.full_name)
