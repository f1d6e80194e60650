"""Every environment variable, once.

`KLEIN_LAB_HOME` is the one folder that holds all that must survive: database, images, uploaded LoRAs.
"""

import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from platformdirs import user_data_path
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from lora_runtime.errors import InvalidInput
from lora_runtime.written import quote

Attention: TypeAlias = Literal["auto", "torch", "cudnn", "flash", "flash3"]


class Settings(BaseSettings):
    """Read from `KLEIN_LAB_*`; `DATABASE_URL`, `HF_TOKEN`, `BFL_API_KEY`, `HOST` and `PORT` keep others' names."""

    model_config = SettingsConfigDict(
        env_prefix="KLEIN_LAB_", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    home: Path = Field(default_factory=lambda: _default_home())
    """Database, images, finetunes. Your platform's data folder; `/data` on a Space that mounts it."""

    database_url: str | None = Field(default=None, validation_alias="DATABASE_URL")
    """A SQLAlchemy URL; SQLite in the home folder when not given. PostgreSQL needs `pip install "psycopg[binary]"`."""

    models_dir: Path | None = None
    """Folder with klein weights in diffusers' layout, one subfolder each (`klein-4b`, ...); else the Hub's cache."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """What renders; `auto` takes a GPU where there is one."""

    compile: bool = False
    """Compile the transformer's blocks on a CUDA GPU. The first images then wait a minute."""

    attention: Attention = "auto"
    """The attention kernel on a CUDA GPU; `auto` times those that are installed and takes the fastest."""

    adapter_cache_bytes: int = Field(default=2 * 1024**3, ge=0)
    """How many bytes of attached LoRAs stay on the device when nobody uses them."""

    lora_max_bytes: int = Field(default=2 * 1024**3, ge=1)
    """The largest LoRA that is downloaded, or taken in as a finetune."""

    remote: str = "global"
    """Where the remote backend sends its requests: global, eu or us of the BFL API, or the base URL of a server."""

    bfl_api_key: SecretStr | None = Field(default=None, validation_alias="BFL_API_KEY")
    """The key of the remote backend."""

    ray: str | None = None
    """HOST:PORT of a Ray cluster whose engines render in place of this process: see docs/scaling.md."""

    host: str = Field(default_factory=lambda: _default_host(), validation_alias="HOST")
    """Where to serve: 127.0.0.1, this machine alone; 0.0.0.0 on a Space."""

    port: int = Field(default=7860, ge=0, le=65535, validation_alias="PORT")
    """The port to serve at; 0 is any that is free."""

    public_url: str | None = None
    """The address of a proxy in front, as people and callers see it. On loopback no other name is answered."""

    max_active_tasks: int = Field(default=24, ge=1)
    """How many tasks an organization may have waiting or under way. Source: BFL's limit."""

    workers: int = Field(default=32, ge=1)
    """How many tasks are handed to the backend at once; those that fit together share a batch."""

    sweeps_at_once: int = Field(default=4, ge=1)
    """How many sweeps render at once on one backend; the others wait in a queue."""

    clip: Path | None = None
    """Folder of a CLIP or SigLIP that holds pictures against their prompts, in place of a downloaded one."""

    dino: Path | None = None
    """Folder of a DINOv2 that tells how alike two pictures are, in place of a downloaded one."""

    fetch_judge: bool = Field(default_factory=lambda: _on_space() and _has_gpu())
    """Whether a judge is fetched at the start when klein's weights are chosen and there is none."""

    allow_private_networks: bool = False
    """Whether input images are fetched from, and webhooks sent to, addresses that are not public."""

    visitors: Literal["together", "apart"] = Field(default_factory=lambda: _default_visitors())
    """Whether everybody at the page sees the same work (`together`), or each browser its own (`apart`, on Spaces)."""

    keep_hours: float = Field(default=24, ge=0)
    """How long the work of visitors that are kept apart stays; 0 is for ever. Other work always stays."""

    api_keys: SecretStr | None = None
    """Keys of the HTTP API beside those in the database: `acme:SECRET,other:SECRET`."""

    weights: str = Field(default_factory=lambda: _default_weights())
    """What is chosen while no LoRA says otherwise: pocket; on a Space with a GPU klein-4b, fetched at the start."""

    @property
    def on_space(self) -> bool:
        """Whether this is a Hugging Face Space, open to the whole network behind a proxy."""
        return _on_space()

    @property
    def on_zero_gpu(self) -> bool:
        """Whether the GPU is lent for seconds at a time, to one visitor after the other."""
        return _on_zero_gpu()

    @property
    def opens_browser(self) -> bool:
        """Whether serving opens a browser page: for a person at a desk, on this machine, and nobody else."""
        has_screen = sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
        return has_screen and sys.stdout.isatty() and self.host in ("127.0.0.1", "localhost")

    def sqlalchemy_url(self) -> str:
        """The database to open."""
        return self.database_url or f"sqlite:///{self.home / 'lab.sqlite3'}"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once.

    Raises:
        InvalidInput: A variable has a value that it cannot have.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise InvalidInput(_say(error)) from error


def _say(error: ValidationError) -> str:
    """The first variable that is wrong, and what it may be."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    variable = f"KLEIN_LAB_{name.upper()}" if name in Settings.model_fields else name
    bounds = first.get("ctx", {})
    wanted = {
        "literal_error": f"{bounds.get('expected')}",
        "greater_than_equal": f"{bounds.get('ge')} or more",
        "less_than_equal": f"{bounds.get('le')} or less",
        "bool_parsing": "true or false",
        "int_parsing": "a whole number",
        "float_parsing": "a number",
    }.get(first["type"], "something else")
    return f"{variable}: {quote(first['input'])} cannot be used. Set it to {wanted}, or leave it out."


def _on_space() -> bool:
    return "SPACE_ID" in os.environ


def _on_zero_gpu() -> bool:
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def _default_visitors() -> Literal["together", "apart"]:
    """A Space is open to everybody."""
    return "apart" if _on_space() else "together"


def _default_weights() -> str:
    """A Space with a GPU, its own or one that is lent for seconds, renders klein itself."""
    return "klein-4b" if _on_space() and _has_gpu() else "pocket"


def _has_gpu() -> bool:
    return _on_zero_gpu() or Path("/dev/nvidia0").exists()


def _default_host() -> str:
    """A Space is reached through a proxy on another machine; Spaces names the address in Gradio's own variable."""
    return os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if _on_space() else "127.0.0.1")


def _default_home(mounted: Path = Path("/data")) -> Path:
    """`/data` where a Space mounts it, the platform's own data folder elsewhere."""
    if mounted.is_dir() and _on_space():
        return mounted / "klein-lora-lab"
    return user_data_path("klein-lora-lab", appauthor=False)
