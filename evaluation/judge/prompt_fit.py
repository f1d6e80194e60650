"""Score how well a run's images follow their prompts, once they are all there.

Apart from `sweep.py` because it may take a model: scoring waits until the images are shown, does what is missing in
batches, and is kept, so that it happens once. Which CLIP judges: the folder of `KLEIN_LAB_CLIP`; without it the
bundled judge, for the pocket klein alone, as it knows no other pictures.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from evaluation.judge.metrics.clip import BATCH, BUNDLED_JUDGE, measure_prompt_fit
from evaluation.store.store import CellRecord, Store
from lora_runtime.catalogue import find_weights
from lora_runtime.settings import settings


def find_judge(weights: str) -> Path | None:
    """Return the folder of the CLIP that judges images of `weights`, or None when there is none."""
    chosen = settings().clip
    if chosen is not None:
        return chosen
    return BUNDLED_JUDGE if find_weights(weights).bundled else None


def score_prompts(store: Store, records: Sequence[CellRecord]) -> Iterator[int]:
    """Score the images that have no prompt fit yet; yields how many are done after each batch.

    Raises:
        InvalidInput: `KLEIN_LAB_CLIP` names a folder without a CLIP model.
        Unavailable: torch or transformers is not installed.
    """
    waiting: dict[tuple[Path, str], dict[str, Path]] = {}
    for record in records:
        judge = find_judge(record.cell.request.weights)
        if judge is not None and record.image is not None and "clip" not in record.scores:
            waiting.setdefault((judge, record.cell.request.prompt), {})[record.cell.identity] = record.image
    done = 0
    for (judge, prompt), images in waiting.items():
        identities = list(images)
        for start in range(0, len(identities), BATCH):
            batch = identities[start : start + BATCH]
            with ExitStack() as stack:
                opened = [stack.enter_context(Image.open(images[identity])) for identity in batch]
                fits = measure_prompt_fit(opened, prompt, judge)
            for identity, fit in zip(batch, fits, strict=True):
                store.save_own_scores(identity, {"clip": fit})
            done += len(batch)
            yield done
