"""What the form would render, how long that takes and what it costs, before anything is asked of a backend.

The time is the median of the last images like these, the cost the catalogue's price; what is not known is not said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from evaluation.cost import estimate_credits, format_credits
from evaluation.store.store import Store
from evaluation.tabs.sweep_form import SweepForm, count_cells, list_precisions, list_weights
from lora_runtime.backends.base import Backend
from lora_runtime.catalogue import find_weights
from lora_runtime.values import ModelStatus
from lora_runtime.written import count_of


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Rows and columns of the grid; seconds on this machine and credits elsewhere, None where that is not known."""

    rows: int
    columns: int
    seconds: float | None
    credits: Decimal | None

    @property
    def images(self) -> int:
        """How many cells the grid has."""
        return self.rows * self.columns


def estimate_form(
    form: SweepForm,
    backends: Mapping[str, Backend],
    statuses: Mapping[str, Sequence[ModelStatus]],
    store: Store,
    *,
    checkpoints: int = 1,
) -> Estimate:
    """Estimate the sweep of `form` on `backends`; `statuses` are what each said of itself, empty while unknown.

    `checkpoints` is how many there are when its LoRA is a training run.

    Raises:
        KleinLabError: A field cannot be read.
    """
    rows, columns = count_cells(form, len(backends), checkpoints)
    weights, precisions = list_weights(form), list_precisions(form)
    images = rows * columns // (len(weights) * len(precisions) * len(backends))
    seconds: float | None = 0.0
    credits_: Decimal | None = Decimal(0)
    for name in weights:
        record = find_weights(name)
        width, height = form.width or record.default_size, form.height or record.default_size
        steps = form.steps or record.steps if name == form.weights else record.steps
        for place, backend in backends.items():
            for asked in precisions:
                if backend.server:
                    cost = estimate_credits(name, asked, width=width, height=height)
                    credits_ = None if cost is None or credits_ is None else credits_ + cost * images
                    continue
                known = (status.precision for status in statuses.get(place, ()) if status.weights == name)
                precision = asked or next(known, None)
                each = store.seconds_per_image(name, precision, width, height, steps) if precision else None
                seconds = None if each is None or seconds is None else seconds + each * images
    here = [not backend.server for backend in backends.values()]
    return Estimate(
        rows=rows, columns=columns, seconds=seconds if any(here) else None, credits=None if all(here) else credits_
    )


def say_estimate(estimate: Estimate, *, here: bool) -> tuple[str, tuple[str, ...]]:
    """Return how many images in words, and what follows: the time (when some are rendered `here`) and the cost."""
    count = estimate.images
    images = count_of(count, "image")
    if estimate.rows > 1:
        images = f"{estimate.rows} × {estimate.columns} = {images}"
    known = estimate.seconds is not None
    time = f"about {say_seconds(estimate.seconds or 0)}" if known else "the first run measures the time"
    cost = "" if estimate.credits is None else format_credits(estimate.credits)
    return images, tuple(word for word in (time if here else "", cost) if word)


def say_seconds(seconds: float) -> str:
    """Write a time for people."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"
