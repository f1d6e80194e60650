"""What the API documents: BFL's types, bounds and nulls, every status that can be answered; and 422 for no text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_runtime.catalogue import ENDPOINTS
from tests.api_server import Server, run_server
from tests.drawing_backend import DrawingBackend

BFL: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "bfl_openapi.json").read_text())
BODY = {"prompt": "a red cat in the meadow", "seed": 7, "width": 64, "height": 64}
POCKET_URL = "/v1/flux-2-klein-pocket"


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    with run_server(DrawingBackend(), home) as server:
        yield server


def test_the_docs_list_every_endpoint_with_bfls_fields(server: Server) -> None:
    assert server.ask("GET", "/v1/docs").status == 200
    schema = server.ask("GET", "/v1/openapi.json").json
    assert {endpoint.path for endpoint in ENDPOINTS.values()} <= set(schema["paths"])
    finetuned = schema["components"]["schemas"]["Flux2KleinFinetunedInputs"]
    assert finetuned["required"] == ["prompt", "finetune_id"]
    added = {"finetune_id", "finetune_strength"}
    assert finetuned["properties"].keys() == bare(schema, "Flux2KleinInputs")["properties"].keys() | added
    security = schema["paths"][POCKET_URL]["post"]["security"]
    assert security == [{"APIKeyHeader": []}]
    assert "security" not in schema["paths"]["/v1/get_result"]["get"]


def bare(openapi: dict[str, Any], name: str) -> dict[str, Any]:
    """A schema without words: what each field may be."""
    schemas = openapi["components"]["schemas"]

    def strip(schema: Any) -> Any:
        if isinstance(schema, list):
            return [strip(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        found = {} if "$ref" not in schema else strip(schemas[schema["$ref"].rpartition("/")[2]])
        words = ("title", "description", "examples", "example", "$ref")
        kept = {key: strip(value) for key, value in schema.items() if key not in words}
        return {**found, **kept, **({"enum": sorted(kept["enum"])} if "enum" in kept else {})}

    properties = {key: strip(field) for key, field in schemas[name]["properties"].items()}
    return {"required": schemas[name].get("required", []), "properties": properties}


OURS = {
    "Flux2KleinInputs": {"user"},  # of a later schema of BFL's
    "ResultResponse": {"result"},  # anything there; here the image it is
    "MyFinetunesResponse": {"finetunes"},  # a list of anything there; here of names
    "ValidationError": {"input", "ctx"},  # FastAPI documents them; they are not sent
}


def test_every_type_bound_default_and_null_is_bfls(server: Server) -> None:
    openapi = server.ask("GET", "/v1/openapi.json").json
    for name, theirs in BFL["schemas"].items():
        ours, apart = bare(openapi, name), OURS.get(name, set())
        assert ours["required"] == theirs["required"], name
        assert ours["properties"].keys() - theirs["properties"].keys() <= apart, name
        for field in theirs["properties"].keys() - apart:
            found, expected = ours["properties"][field], theirs["properties"][field]
            if "default" not in expected and found.get("default") is None:
                found = {key: value for key, value in found.items() if key != "default"}  # null is what is left out
            assert found == expected, (name, field)


def test_every_route_says_what_it_answers(server: Server) -> None:
    openapi = server.ask("GET", "/v1/openapi.json").json
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            said = operation["responses"]
            assert {"200", "403", "404", "507"} <= said.keys(), path
            assert ("422" in said) is bool(operation.get("parameters") or operation.get("requestBody")), path
            if "application/json" in operation.get("requestBody", {}).get("content", {}):
                assert {"400", "413"} <= said.keys(), path
            for status, response in said.items():
                if status not in ("200", "422"):
                    assert response["content"]["application/json"]["schema"]["required"] == ["detail"], (path, status)
            assert (method, {"402", "429", "503"} <= said.keys()) == (method, path.startswith("/v1/flux-")), path
    example = openapi["paths"]["/v1/lab/finetune_example"]["get"]
    assert example["responses"]["200"]["content"] == {"text/plain": {"schema": {"type": "string"}}}
    (language,) = (each for each in example["parameters"] if each["name"] == "language")
    assert language["schema"]["enum"] == ["curl", "python"]


UNWRITABLE = [
    ("/v1/delete_finetune", {"finetune_id": "\ud800"}, "finetune_id"),
    ("/v1/lab/edit_finetune", {"finetune_id": "x", "trigger_phrase": "a\udfff"}, "trigger_phrase"),
    ("/v1/lab/grant_finetune", {"finetune_id": "x", "organization_id": "\ud800"}, "organization_id"),
    ("/v1/lab/restore_finetune", {"finetune_id": "a\0b"}, "finetune_id"),
    (POCKET_URL, {**BODY, "prompt": "a \ud83d"}, "prompt"),
    (POCKET_URL, {**BODY, "user": "\ud800"}, "user"),
    (POCKET_URL, {**BODY, "input_image": "\ud800"}, "input_image"),
    (POCKET_URL, {**BODY, "output_format": "\ud800"}, "output_format"),
    (POCKET_URL, {**BODY, "input_image": "http://xn--/"}, "input_image"),
    (POCKET_URL, {**BODY, "input_image": f"http://{'a' * 64}.example/"}, "input_image"),
    (POCKET_URL, {**BODY, "width": 10**4000}, "width"),
]


def test_what_no_table_or_name_service_takes_is_refused_at_its_field(server: Server) -> None:
    for path, body, place in UNWRITABLE:
        reply = server.ask("POST", path, body)
        assert reply.status == 422, (path, place)
        (problem,) = reply.json["detail"]
        assert problem["loc"] == ["body", place]
        assert 0 < len(problem["msg"]) <= 500


def test_a_nul_in_a_query_is_refused(server: Server) -> None:
    for path in ("get_result?id=%00", "finetune_details?finetune_id=a%00", "lab/finetune_example?finetune_id=%00"):
        assert server.ask("GET", f"/v1/{path}").status == 422
