"""Trees, tools and verification with real models: one that has learned three problems, and one that writes nonsense."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_distill.traces.chain_of_verification import verified
from edge_distill.traces.checking import check
from edge_distill.traces.elicitation import Elicit
from edge_distill.traces.react import react
from edge_distill.traces.self_consistency import self_consistency
from edge_distill.traces.teachers.runtime import RuntimeTeacher
from edge_distill.traces.teachers.teacher import Sampling
from edge_distill.traces.trace import parse_line, to_line
from edge_distill.traces.tree import Search, tree_of_thoughts
from edge_distill_bench.problem import Problem
from edge_distill_export.checkpoint import Checkpoint
from tests.random_models import random_checkpoint, variant_named
from tests.runtime.bundles import write_manifest, write_model
from tests.traces.teachers.conftest import LEARNED, Taught

PROBLEMS = [Problem(text, "learned", text, answer[7:-1]) for text, (_, answer) in LEARNED.items()]
SAMPLING = Sampling(temperature=0.3, max_tokens=40)


@pytest.fixture(scope="module")
def runtime(taught: Taught) -> Iterator[RuntimeTeacher]:
    teacher = RuntimeTeacher("bundle", str(taught.bundle))
    yield teacher
    teacher.close()


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeTeacher]:
    folder = tmp_path_factory.mktemp("nonsense")
    write_model(
        folder, Checkpoint(*random_checkpoint(variant_named("llama-tied-gqa")), "nonsense", {}), "gguf"
    )
    write_manifest(folder, "gguf")
    teacher = RuntimeTeacher("bundle", str(folder))
    yield teacher
    teacher.close()


@pytest.mark.parametrize("search", ["breadth", "best"])
def test_a_tree_of_what_was_learned(runtime: RuntimeTeacher, search: Search) -> None:
    elicit = tree_of_thoughts(search=search, sampling=SAMPLING)
    found = dict(elicit(PROBLEMS, runtime))
    for index, problem in enumerate(PROBLEMS):
        (candidate,) = found[index]
        assert (candidate.reasoning, candidate.text) == LEARNED[problem.problem]
        assert candidate.finish_reason == "stop"
        trace = check(candidate, problem, runtime.name)
        assert trace.correct is True
        assert parse_line(to_line(trace)) == trace


WAYS = {
    "breadth": tree_of_thoughts(search="breadth", sampling=SAMPLING, nodes=12),
    "best": tree_of_thoughts(search="best", sampling=SAMPLING, nodes=12, scorer="teacher"),
    "react": react(sampling=SAMPLING, max_calls=2),
    "verified": verified(self_consistency(samples=2, sampling=SAMPLING), sampling=SAMPLING, questions=2),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("model", ["runtime", "nonsense"])
def test_every_way_ends_with_any_model(name: str, model: str, request: pytest.FixtureRequest) -> None:
    teacher: RuntimeTeacher = request.getfixturevalue(model)
    elicit: Elicit = WAYS[name]
    found = dict(elicit(PROBLEMS, teacher))
    assert sorted(found) == [0, 1, 2]
    for index, candidates in found.items():
        for candidate in candidates:
            trace = check(candidate, PROBLEMS[index], teacher.name)
            assert parse_line(to_line(trace)) == trace
            assert trace.correct is None or candidate.finish_reason == "stop"
    again = dict(elicit(PROBLEMS, teacher))
    assert found == again
