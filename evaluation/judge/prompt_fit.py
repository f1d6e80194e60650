"""Show a run's images to its judges, once they are all there: what each judge sees, and how well prompts are followed.

Apart from `sweep.py` because it takes a model: looking waits until the images are shown, does what is missing in
batches, and is kept with the judge's id, so that it happens once for each judge. Which judge: see
`lora_runtime/judges.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from evaluation.store.store import CellRecord, Store
from lora_runtime.judges import Judge, find_judge

BATCH = 16
"""Images that are looked at before somebody may stop it."""


def embed_kept(store: Store, images: Mapping[str, Path], judge: Judge) -> Mapping[str, npt.NDArray[np.float32]]:
    """Return the vector of each image by its identity; what the judge has not seen yet, it looks at.

    Raises:
        InvalidInput: The judge's folder is not whole.
        Unavailable: torch or transformers is not installed.
    """
    from evaluation.judge.metrics.embeddings import embed_images

    seen = store.embeddings(images, judge.id)
    waiting = [identity for identity in images if identity not in seen]
    for start in range(0, len(waiting), BATCH):
        batch = waiting[start : start + BATCH]
        with ExitStack() as stack:
            vectors = embed_images([stack.enter_context(Image.open(images[each])) for each in batch], judge)
        fresh = dict(zip(batch, vectors, strict=True))
        store.save_embeddings(judge.id, fresh)
        seen.update(fresh)
    return seen


def score_prompts(store: Store, records: Sequence[CellRecord]) -> Iterator[int]:
    """Score the images that have no prompt fit by their judge yet; yields how many are done after each batch.

    Raises:
        InvalidInput: KLEIN_LAB_CLIP names a folder that cannot judge, or the judge's folder is not whole.
        Unavailable: torch or transformers is not installed.
    """
    judges = {weights: find_judge(weights) for weights in {record.cell.request.weights for record in records}}
    waiting: dict[tuple[Judge, str], dict[str, Path]] = {}
    for record in records:
        judge = judges[record.cell.request.weights]
        if judge is not None and record.image is not None and "clip" not in record.scores:
            waiting.setdefault((judge, record.cell.request.prompt), {})[record.cell.identity] = record.image
    done = 0
    for (judge, prompt), of_prompt in waiting.items():
        from evaluation.judge.metrics.clip import measure_prompt_fit

        for start in range(0, len(of_prompt), BATCH):
            batch = dict(islice(of_prompt.items(), start, start + BATCH))
            vectors = embed_kept(store, batch, judge)
            fits = measure_prompt_fit(np.stack(list(vectors.values())), [prompt], judge)[:, 0]
            for identity, fit in zip(vectors, fits, strict=True):
                store.save_own_scores(identity, {"clip": float(fit)}, judge=judge.id)
            done += len(batch)
            yield done
