"""What made old-home.tar.gz: run with the code of commit 2f2a595, `python make_old_home.py old-home.tar.gz`.

The home has LoRAs of every way that they came into `loras/` then, finetunes beside them, runs whole and half done, a
rating, a deleted image, presets, and tasks; `expected.json` is what that code itself says of them.
"""

import json
import os
import sys
import tarfile
import tempfile
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

home = Path(tempfile.mkdtemp()) / "home"
os.environ["KLEIN_LAB_HOME"] = str(home)

from evaluation.presets import Presets
from lora_runtime.finetunes import Finetunes
from lora_runtime.shelf import Shelf
from lora_runtime.tasks import NewTask

from evaluation.grid import make_spec
from evaluation.store import Store
from evaluation.sweep import CellEnded, run_sweep
from evaluation.tabs.form import SweepForm, dump_form
from lora_runtime.lora import library
from lora_runtime.lora.download import parse_source
from lora_runtime.requests import make_request
from lora_runtime.registry.local import open_blobs
from lora_runtime.server.service import Service
from lora_runtime.settings import settings
from tests.drawing_backend import DrawingBackend, make_lora

chosen, backend = settings(), DrawingBackend()
store = Store.open(chosen)
service = Service(backend=backend, database=store.database, blobs=open_blobs(chosen), settings=chosen)
finetunes: Finetunes = service.finetunes

kept = library.keep_lora(make_lora("kept").path)
foreign = library.keep_lora(make_lora("风格").path)
(home / "loras" / "Put by hand.safetensors").write_bytes(make_lora("hand").path.read_bytes())
(home / "loras" / "style.safetensors").write_bytes(make_lora("own style").path.read_bytes())
library.keep_lora(make_lora("watercolor").path)
source = parse_source("ann/klein-style")
(home / "loras" / "watercolor.source.json").write_text(json.dumps({"keys": [library._digest(source)]}))
finetunes.add_file("local", make_lora("mine").path, name="mine", weights="pocket", trigger_phrase="ohwx")
finetunes.add_file("acme", make_lora("theirs").path, name="theirs", weights="pocket")
finetunes.grant("acme", "theirs", "local")
finetunes.add_file("local", make_lora("gone").path, name="gone", weights="pocket")
finetunes.remove("local", "gone")

asked = {"prompts": ["a red fox"], "strengths": "0, 0.5, 1", "seeds": [7], "width": 64, "height": 64}
for loras in ([kept, foreign], [finetunes.find("local", "mine").lora]):
    list(run_sweep(make_spec(backend, loras=loras, **asked), backend=backend, store=store))
half = run_sweep(make_spec(backend, loras=[library.find_lora("put-by-hand")], **asked), backend=backend, store=store)
next(event for event in half if isinstance(event, CellEnded))
half.close()
there = library.find_finetune("their-org/fox")
spec = make_spec(backend, loras=[kept], **asked)
remote = replace(spec, loras=(there,), targets=(replace(spec.target, backend="remote"),))
store.create_run(remote)
first = store.runs()[-1].id
store.rate(first, 1, 4, "good")
store.delete_cells([(first, 2)])

form = SweepForm(
    lora="kept", prompt="a cat", strengths="0-1", seed="7", weights="pocket", more_loras=("lora", "local/mine")
)
Presets(store.database).save("local", "mine", dump_form(form))
tasks = []
for number, name in enumerate(("mine", "acme/theirs")):
    finetune = finetunes.find("local", name)
    request = make_request(
        backend, weights="pocket", prompt="a boat", lora=finetune.lora, strength=Decimal(1), seed=3, width=64, height=64
    )
    task = NewTask(
        organization="local",
        endpoint=finetune.endpoint.name,
        request=request,
        millicredits=0,
        output_format="png",
        base_url="http://127.0.0.1:7860",
        finetune=finetune.id,
        lora_blob=finetune.blob,
    )
    tasks.append(service.tasks.submit(task))
    if number == 0:
        (claimed,) = service.tasks.claim()
        service.tasks.finish(claimed, blob=service.blobs.put(b"a picture", suffix=".png"), started=1.0)

expected = {
    "loras": {ref.name: ref.sha256 for ref in Shelf(finetunes).list("local")},
    "finetunes": {each.id: [each.lora.sha256, each.trigger_phrase, each.owner] for each in finetunes.list("local")},
    "runs": [
        [
            run.id,
            run.status,
            run.verdict and run.verdict.ok,
            [
                [
                    cell.cell.identity,
                    cell.state,
                    cell.image and cell.image.name,
                    cell.rating,
                    cell.note,
                    dict(cell.scores),
                ]
                for cell in store.cells(run.id)
            ],
        ]
        for run in store.runs()
    ],
    "preset": dump_form(form),
    "tasks": tasks,
}
(home / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False))
store.close()
with tarfile.open(sys.argv[1], "w:gz") as archive:
    archive.add(home, arcname="home")
