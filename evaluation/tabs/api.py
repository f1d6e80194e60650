"""The sweep for programs: one public endpoint, `/sweep`, for `gradio_client` and plain HTTP."""

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from evaluation.store import CellRecord, Store
from evaluation.strengths import exact
from evaluation.sweep import Planned, run_sweep
from evaluation.tabs.form import SweepForm, make_form_spec
from evaluation.tabs.sweep import VISITORS
from lora_runtime.backends.base import Backend
from lora_runtime.errors import KleinLabError


def build_api(backends: Mapping[str, Backend], store: Store) -> None:
    """Add the endpoint to the current `gr.Blocks`."""
    gr.api(_make_sweep(backends, store), api_name="sweep", concurrency_limit=VISITORS, concurrency_id="sweep")


def _make_sweep(backends: Mapping[str, Backend], store: Store) -> Callable[..., list[dict[str, Any]]]:
    def sweep(
        lora: str,
        prompt: str,
        strengths: str,
        seed: int,
        weights: str = "pocket",
        precision: str = "",
        backend: str = "",
    ) -> list[dict[str, Any]]:
        """Render one prompt and seed at every strength of a LoRA.

        Args:
            lora: The name of a bundled or kept LoRA, such as "style".
            prompt: What to draw.
            strengths: A list or ranges, such as "0, 0.5, 1", "0-1.2 [7]" or "0.7-0.9 (+0.05)"; 0, the base model, is
                added in front when it is missing.
            seed: 0 or more; -1 for a random one.
            weights: The base checkpoint.
            precision: Such as "bf16" or "fp8", or "bf16,fp8" for a row of each; empty is what runs best here.
            backend: Where: "local", "remote", or "local,remote" for a row of each; empty is this machine.

        Returns:
            One row an image, in order: run, position, strength, seed, prompt, lora, weights, precision, backend, status
            ("done" or "failed"), seconds, cost (credits, of a remote server that says it), error, and image, the very
            PNG file that was written (None when it failed).
        """
        try:
            form = SweepForm(
                lora=lora,
                prompt=prompt,
                strengths=strengths,
                seed=str(seed),
                weights=weights,
                precision=precision,
                backends=backend,
            )
            spec = make_form_spec(backends, form)
            run_id = ""
            for event in run_sweep(spec, backend=backends, store=store):
                if isinstance(event, Planned):
                    run_id = event.run_id
        except KleinLabError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [_row(record) for record in store.cells(run_id)]

    return sweep


def _row(record: CellRecord) -> dict[str, Any]:
    request = record.cell.request
    image = None
    if record.image is not None:
        image = gr.FileData(path=str(record.image), mime_type="image/png", orig_name=record.image.name).model_dump()
    return {
        "run": record.run_id,
        "position": record.cell.position,
        "strength": float(exact(request.strength)),
        "seed": request.seed,
        "prompt": request.prompt,
        "lora": request.lora.name if request.lora else None,
        "weights": request.weights,
        "precision": request.precision,
        "backend": record.cell.target.backend,
        "status": record.state,
        "seconds": record.seconds,
        "cost": record.cost,
        "error": record.error,
        "image": image,
    }
