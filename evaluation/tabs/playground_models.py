"""What the Playground's picker offers: base models and finetunes, where each is sent, and why one cannot run.

A choice is known by a key that the page keeps: `base:WEIGHTS`, `finetune:ID`, or `file:WEIGHTS/SHA256` for a LoRA of
the home folder that is no finetune. The page is not believed: a key is looked up anew for whoever asks, so one of
another organization is not found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from lora_runtime.backends.base import Backend
from lora_runtime.backends.bfl import REGIONS
from lora_runtime.catalogue import WEIGHTS, Endpoint, Weights, choose_endpoint, find_weights
from lora_runtime.errors import NotFound
from lora_runtime.registry.finetune import Finetune, Source
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.registry.shelf import Shelf
from lora_runtime.values import LoraRef, ModelStatus, Precision

STARTER: Final = "finetune:official/style"
"""What is chosen first where the pocket runs."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A base model, or a LoRA on its base. `precision` is what its endpoint asks for; None is the backend's own."""

    key: str
    weights: Weights
    lora: LoraRef | None = None
    finetune: Finetune | None = None
    precision: Precision | None = None

    @property
    def title(self) -> str:
        """Its name in the picker."""
        if self.finetune is not None:
            return self.finetune.id
        return self.lora.name if self.lora is not None else self.weights.label

    @property
    def trigger_phrase(self) -> str | None:
        """The words that a finetune answers to."""
        return self.finetune.trigger_phrase if self.finetune else self.lora.trigger_phrase if self.lora else None

    @property
    def whose(self) -> str:
        """Whose it is, in a word or two; empty for a base model."""
        if self.finetune is None:
            return "a file of this machine" if self.lora is not None else ""
        owner = {Source.OWNED: "yours", Source.OFFICIAL: "official"}.get(self.finetune.source)
        return owner or f"shared by {self.finetune.owner}"


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where a choice is sent. `endpoint` is None where the API has none; `reason` says why it cannot run."""

    endpoint: Endpoint | None
    reason: str = ""


class Models:
    """The choices of every organization on the backends of the app.

    `weights` are chosen first and `remote` is the region or address of the remote server, as the settings say.

    What a backend can run is asked for by `learn`: the first answer may import torch. Until then nothing is said.
    """

    def __init__(
        self, backends: Mapping[str, Backend], finetunes: Finetunes, shelf: Shelf, *, weights: str, remote: str
    ) -> None:
        self.first = STARTER if weights == "pocket" else f"base:{weights}"
        """The key of what is chosen first."""
        self.remote = REGIONS.get(remote, remote)
        """The address of the remote server."""
        self._backends = backends
        self._finetunes = finetunes
        self._shelf = shelf
        self._statuses: Mapping[str, Sequence[ModelStatus]] = {}

    def learn(self) -> None:
        """Ask every backend what it can run."""
        self._statuses = {name: tuple(backend.models()) for name, backend in self._backends.items()}

    def list(self, organization: str) -> tuple[Choice, ...]:
        """Return the base models, then the finetunes that `organization` can use."""
        bases = [Choice(key=f"base:{name}", weights=weights) for name, weights in WEIGHTS.items()]
        kept = self._read_shelf(organization)
        return (*bases, *(_of_finetune(finetune, kept) for finetune in self._finetunes.list(organization)))

    def find(self, organization: str, key: str) -> Choice:
        """Return the choice of a key.

        Raises:
            NotFound: There is none that `organization` can use.
        """
        kind, _, name = key.partition(":")
        if kind == "base":
            return Choice(key=key, weights=find_weights(name))
        if kind == "finetune":
            kept = self._read_shelf(organization)
            return _of_finetune(self._finetunes.find(organization, name), kept)
        weights, _, sha256 = name.partition("/")
        return self._find_file(organization, find_weights(weights), sha256)

    def route(self, choice: Choice, precision: Precision | None, backend: str) -> Route:
        """Return where `choice` goes on `backend`, at `precision` or at that of its endpoint."""
        asked = precision or choice.precision
        there = self._statuses.get(backend)
        known = [status for status in there or () if status.weights == choice.weights.name]
        fitting = [status for status in known if asked in (None, status.precision)]
        at = asked or (fitting[0].precision if fitting else "bf16")
        endpoint = choose_endpoint(choice.weights.name, at, finetuned=choice.lora is not None)
        if there is None:
            return Route(endpoint=endpoint)
        if not known:
            return Route(endpoint=endpoint, reason=f"The {backend} backend does not run {choice.weights.name}.")
        if not fitting:
            offered = ", ".join(status.precision for status in known)
            return Route(
                endpoint=endpoint,
                reason=f"{choice.weights.label} does not run in {at} here. It runs in: {offered}.",
            )
        return Route(endpoint=endpoint, reason="" if fitting[0].available else fitting[0].reason)

    def finetune_of(self, organization: str, weights: str, sha256: str) -> Finetune | None:
        """Return the finetune with this file on these weights, if `organization` has one."""
        return next(
            (
                finetune
                for finetune in self._finetunes.list(organization)
                if (finetune.weights, finetune.lora.sha256) == (weights, sha256)
            ),
            None,
        )

    def name_of(self, organization: str, lora: LoraRef) -> str:
        """Return the name under which `organization` finds the file of `lora` on its shelf; its own if it does not."""
        return self._read_shelf(organization).get(lora.sha256, lora).name

    def _read_shelf(self, organization: str) -> Mapping[str, LoraRef]:
        """The shelf by digest; of two with the same file the first counts, which is a bundled one's plain name."""
        return {ref.sha256: ref for ref in reversed(self._shelf.list(organization))}

    def _find_file(self, organization: str, weights: Weights, sha256: str) -> Choice:
        kept = self._read_shelf(organization)
        finetune = self.finetune_of(organization, weights.name, sha256)
        if finetune is not None:
            return _of_finetune(finetune, kept)
        if sha256 not in kept:
            raise NotFound("The LoRA of that image is not among yours any more. Add its file on the Finetunes tab.")
        return _of_file(kept[sha256], weights.name)


def _of_file(ref: LoraRef, weights: str) -> Choice:
    return Choice(key=f"file:{weights}/{ref.sha256}", weights=find_weights(weights), lora=ref)


def _of_finetune(finetune: Finetune, kept: Mapping[str, LoraRef]) -> Choice:
    """A bundled LoRA goes by its plain name, as on the other tabs, and one whose name a file has by its full one."""
    official = finetune.source is Source.OFFICIAL
    taken = any(ref.name == finetune.id and ref.sha256 != finetune.lora.sha256 for ref in kept.values())
    lora = replace(finetune.lora, name=finetune.full_name) if taken else finetune.lora
    return Choice(
        key=f"finetune:{finetune.id}",
        weights=find_weights(finetune.weights),
        lora=kept.get(lora.sha256, lora) if official else lora,
        finetune=finetune,
        precision=finetune.precision,
    )
