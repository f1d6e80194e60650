"""A short run of `mutated_bodies.py`: no request makes the server fail, hang, ramble, or answer the unexpected."""

from pathlib import Path

import pytest

from tests.mutated_bodies import mutate, mutation_server, read_operations


@pytest.mark.parametrize("seed", [20261125, 2])
def test_every_answer_to_a_mutated_request_is_a_documented_one(home: Path, seed: int) -> None:
    with mutation_server(home) as server:
        paths = {operation.path for operation in read_operations(server.ask("GET", "/v1/openapi.json").json)}
        findings = mutate(server, count=400, seed=seed)
    assert findings.faults == []
    assert set(findings.routes) == paths, "every route was tried"
    assert {200, 403, 404, 422, 503} <= set(findings.statuses)
    assert set(findings.ended) == {"Ready"}, "what was accepted could be rendered"
