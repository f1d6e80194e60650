"""Every environment variable, once.

`KLEIN_LAB_HOME` is the one folder that holds all that must survive: database, images, uploaded LoRAs.
"""

import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Literal

from platformdirs import user_data_path
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from `KLEIN_LAB_*`; `DATABASE_URL`, `HF_TOKEN`, `BFL_API_KEY`, `HOST` and `PORT` keep others' names."""

    model_config = SettingsConfigDict(env_prefix="KLEIN_LAB_", extra="ignore", frozen=True)

    home: Path = Field(default_factory=lambda: _default_home())
    """Database, images, uploads."""

    database_url: str | None = Field(default=None, validation_alias="DATABASE_URL")
    """A SQLAlchemy URL; SQLite in `home` when not given."""

    models_dir: Path | None = None
    """Folder with klein weights in diffusers' layout, one subfolder each (`klein-4b`, `klein-base-9b`, ...)."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    compile: bool = False
    """Compile the transformer's blocks on a CUDA GPU. The first images of a size and of a LoRA then wait a minute."""

    adapter_cache_bytes: int = Field(default=2 * 1024**3, ge=0)
    """How many bytes of attached LoRAs stay on the device when nobody uses them."""

    lora_max_bytes: int = Field(default=2 * 1024**3, ge=1)
    """The largest LoRA that is downloaded, or taken in as a finetune."""

    remote: str = "global"
    """Where the remote backend sends its requests: global, eu or us of the BFL API, or the base URL of a server."""

    bfl_api_key: SecretStr | None = Field(default=None, validation_alias="BFL_API_KEY")

    host: str = Field(default="127.0.0.1", validation_alias="HOST")
    port: int = Field(default=7860, ge=0, le=65535, validation_alias="PORT")

    public_url: str | None = None
    """The address of the HTTP API as callers see it, when a proxy in front does not say so itself."""

    max_active_tasks: int = Field(default=24, ge=1)
    """How many tasks an organization may have waiting or under way. Source: BFL's limit."""

    workers: int = Field(default=16, ge=1)
    """How many tasks are handed to the backend at once; those that fit together share a batch."""

    allow_private_networks: bool = False
    """Whether input images are fetched from, and webhooks sent to, addresses that are not public."""

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
    """The settings of this process, read once."""
    return Settings()


def _default_home() -> Path:
    """`/data` where a Space mounts it, the platform's own data folder elsewhere."""
    mounted = Path("/data")
    if mounted.is_dir() and "SPACE_ID" in os.environ:
        return mounted / "klein-lora-lab"
    return user_data_path("klein-lora-lab", appauthor=False)
