"""Around the first page: a Space fetches its weights before it, and the model is loaded behind it.

torch is imported here by what is called, never at the top: the first page does not wait for it.
"""

import contextlib
import logging
import threading
from typing import Final

from lora_runtime.backends.base import Backend
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import KleinLabError
from lora_runtime.requests import find_status, make_request
from lora_runtime.settings import Settings

logger = logging.getLogger(__name__)

WARM_UP_AFTER_S: Final = 3.0
"""Importing torch keeps a small machine busy; the first page comes first."""

WARM_UP_PX: Final = 64


def show_pipeline_log() -> None:
    """Let the console show what the pipeline says of itself: each model that was loaded, and what it runs on."""
    log = logging.getLogger("lora_runtime.pipeline")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("  %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def fetch_weights(settings: Settings) -> None:
    """On a Space, fetch the weights of the settings when they are missing. What goes wrong is logged, and said later.

    A person's own machine downloads nothing unasked.
    """
    weights = find_weights(settings.weights)
    if not settings.on_space or weights.bundled:
        return
    from lora_runtime.pipeline.download import plan_download, run_download
    from lora_runtime.pipeline.find import find_checkpoint

    with contextlib.suppress(KleinLabError):
        find_checkpoint(weights)
        return
    try:
        run_download(plan_download(weights, "bf16"))
    except KleinLabError as error:
        logger.warning("%s", error)


def fetch_judge(settings: Settings) -> None:
    """Fetch what judges pictures of the weights of the settings, where they ask for it and there is none.

    What goes wrong is logged, and said later.
    """
    from lora_runtime.judges import plan_judges, say_missing

    if not settings.fetch_judge or say_missing(settings.weights) is None:
        return
    try:
        for plan in plan_judges():
            plan.run()
    except KleinLabError as error:
        logger.warning("%s", error)


def warm_up_later(backend: Backend, settings: Settings) -> None:
    """Load the model in a thread of its own, once the first page is served. A GPU that is lent is not asked for it."""
    if settings.on_zero_gpu:
        return
    later = threading.Timer(WARM_UP_AFTER_S, warm_up, (backend,))
    later.daemon = True
    later.start()


def warm_up(backend: Backend) -> None:
    """Render one small base image and drop it, so that the model is in memory. What fails here, a sweep will say."""
    with contextlib.suppress(KleinLabError):
        request = make_request(
            find_status(backend, "pocket"), prompt="a cat", seed=0, width=WARM_UP_PX, height=WARM_UP_PX
        )
        for _ in backend.render([request]):
            pass
