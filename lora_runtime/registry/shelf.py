"""What one organization can choose from by a name: the bundled LoRAs, its finetunes, and those shared with it.

A form comes from the network, so a name is only ever looked up here and never read as a path.
"""

from dataclasses import replace
from pathlib import Path

from lora_runtime.errors import NotFound
from lora_runtime.lora.check import check_file
from lora_runtime.lora.library import list_bundled, make_name
from lora_runtime.lora.names import clean_name, make_api_name, number_name
from lora_runtime.registry.finetune import Finetune, Source
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.storage.uploads import check_size
from lora_runtime.values import LoraRef
from lora_runtime.written import list_some, quote


class Shelf:
    """What there is to choose, with `finetunes` as the registry."""

    def __init__(self, finetunes: Finetunes) -> None:
        self._finetunes = finetunes

    def show(self, organization: str) -> tuple[Finetune, ...]:
        """Return every finetune once, the official ones first; its LoRA has the name to choose it by.

        A bundled LoRA goes by its plain name, and a finetune of the same name by its full one.
        """
        listed = self._finetunes.list(organization)
        bundled = {ref.name: ref for ref in list_bundled()}
        official = [
            replace(finetune, lora=bundled[finetune.name])
            for finetune in listed
            if finetune.source is Source.OFFICIAL and finetune.name in bundled
        ]
        others = [finetune for finetune in listed if finetune.source is not Source.OFFICIAL]
        return (*official, *(_by_full_name(each) if each.id in bundled else each for each in others))

    def list(self, organization: str) -> tuple[LoraRef, ...]:
        """Return the LoRA of every finetune that `show` returns."""
        return tuple(finetune.lora for finetune in self.show(organization))

    def find(self, organization: str, name: str) -> LoraRef:
        """Return the LoRA that `organization` sees under `name`.

        Raises:
            NotFound: There is none; the message lists the names.
        """
        shown = self.show(organization)
        called = {finetune.full_name: finetune.lora for finetune in shown}
        called |= {finetune.lora.name: finetune.lora for finetune in shown}
        if name not in called:
            names = list_some(finetune.lora.name for finetune in shown)
            raise NotFound(f"There is no LoRA named {quote(name)}. Known names: {names}.")
        return called[name]

    def keep(self, organization: str, path: Path, *, file_name: str | None = None) -> LoraRef:
        """Register an uploaded file as a finetune, for the base it was made for, under a name made of its own.

        A file that is there already is returned under the name it has.

        Raises:
            LoraError: It would not load.
            InvalidInput: It is too large.
            StorageFailed: The disk is full or not writable.
        """
        check_size(path.name, path.stat().st_size, max_bytes=self._finetunes.max_bytes)
        report = check_file(path)
        same = next((ref for ref in self.list(organization) if ref.sha256 == report.file.sha256), None)
        if same is not None:
            return same
        kept = self._finetunes.keep(organization, report, number_name(_name_upload(file_name or path.name)))
        return self.find(organization, kept.full_name)


def _name_upload(file_name: str) -> str:
    """The API's name where that keeps every letter; else the name in its own script, which says what it is."""
    name = clean_name(Path(file_name).stem)
    letters = (each for each in name if each.isalnum())
    return make_name(file_name) if all(make_api_name(each) != "lora" for each in letters) else name


def _by_full_name(finetune: Finetune) -> Finetune:
    return replace(finetune, lora=replace(finetune.lora, name=finetune.full_name))
