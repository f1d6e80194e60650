"""The attention kernel: what is chosen, what is refused and how; and what a start says of it all."""

import logging
from pathlib import Path

import pytest
import torch

from lora_runtime.backends.local import LocalBackend
from lora_runtime.errors import Unavailable
from lora_runtime.pipeline import kernels
from lora_runtime.pipeline.kernels import compiles, describe_kernels, set_attention
from lora_runtime.settings import settings
from tests.pocket_model import load_model, render, request

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def choose(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"KLEIN_LAB_{name.upper()}", value)
    settings.cache_clear()


@pytest.mark.parametrize("wanted", ["auto", "torch"])
def test_a_cpu_has_torchs_own(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    choose(monkeypatch, attention=wanted)
    assert set_attention(load_model().pipeline.transformer, CPU) == "torch"


def test_a_kernel_for_gpus_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, attention="cudnn")
    with pytest.raises(Unavailable, match=r"KLEIN_LAB_ATTENTION is cudnn, which runs on CUDA GPUs only\. Use auto"):
        set_attention(load_model().pipeline.transformer, CPU)


def test_a_kernel_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, attention="flash3")
    with pytest.raises(Unavailable, match=r"the package flash_attn_interface is not installed\. Install it, or use"):
        set_attention(load_model().pipeline.transformer, CUDA)


def test_the_fastest_that_agrees_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed on this CPU: of the four, torch's own runs here; one that says other numbers is out however fast it is."""
    shape = (1, 32, 2, 16)
    monkeypatch.setattr(kernels, "_time", lambda name, _inputs: {"torch": 2.0, "cudnn": 1.0, "flash": 0.5}[name])
    own = kernels._attend

    def attend(name: str, *inputs: torch.Tensor) -> torch.Tensor:
        if name == "flash3":
            raise RuntimeError("no such GPU")
        return own("torch", *inputs) * (2 if name == "flash" else 1)

    monkeypatch.setattr(kernels, "_attend", attend)
    monkeypatch.setattr(kernels, "_PACKAGES", {})
    assert kernels._time_kernels(shape, torch.float32, CPU) == {"torch": 2.0, "cudnn": 1.0}
    assert kernels._choose.__wrapped__("auto", shape, torch.float32, CPU) == "cudnn"


def test_blocks_are_compiled_only_where_that_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not compiles(CUDA, "none"), "off by default"
    choose(monkeypatch, compile="true")
    assert compiles(CUDA, "none")
    assert not compiles(CUDA, "group"), "layers that come in turns are others each time"
    assert not compiles(CPU, "none")


def test_a_status_says_what_a_gpu_will_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_kernels(CPU, "none") == ""
    assert describe_kernels(CUDA, "none") == "the fastest attention, eager blocks"
    choose(monkeypatch, compile="true", attention="cudnn")
    assert describe_kernels(CUDA, "none") == "cudnn attention, compiled blocks"


def test_loading_says_what_is_on(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = LocalBackend()
    with caplog.at_level(logging.INFO, logger="lora_runtime.pipeline.host"):
        render(backend, request(steps=1))
    backend.close()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "lora_runtime.pipeline.host"]
    assert line.startswith("pocket on cpu: bf16; torch attention; eager blocks; channels-last VAE; needs ")
