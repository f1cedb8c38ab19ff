"""Tree of thoughts (Yao et al. 2023, arXiv:2305.10601) over the steps of a reasoning, made into one trace.

The best path becomes the reasoning. On request a branch that the checker refuted stays in, with its refutation: the
student then sees an error, that it is one, and how to go on.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from edge_distill.traces.elicitation import Candidate, Elicit, Scorer, described
from edge_distill.traces.few_shot import ExemplarPool, question
from edge_distill.traces.refutation import refutation_of
from edge_distill.traces.rounds import Talk, advance
from edge_distill.traces.teachers.teacher import Sampling, Teacher
from edge_distill.traces.tree_nodes import Limits, Node, Tree
from edge_distill.traces.tree_scores import Score, by_scorer, by_teacher, checker_score
from edge_distill_bench.problem import Problem
from edge_distill_runtime.errors import InputError

__all__ = ["Search", "best_first", "breadth_first", "tree_of_thoughts"]

Search = Literal["breadth", "best"]

_MOST = {"branching": 64, "beam": 64, "depth": 256, "nodes": 10_000}


def tree_of_thoughts(
    *,
    search: Search = "breadth",
    branching: int = 3,
    beam: int = 2,
    depth: int = 16,
    nodes: int = 96,
    scorer: Scorer | Literal["checker", "teacher"] = "checker",
    refutation: bool = False,
    sampling: Sampling,
    seed: int = 0,
    exemplars: ExemplarPool | None = None,
) -> Elicit:
    """One trace of each problem, from a tree whose nodes are steps.

    From a node `branching` steps are sampled; of equal ones one is kept. What the checker refutes is pruned, whoever
    scores. `search` "breadth" keeps the `beam` best paths of each level, "best" expands the best node anywhere; where
    all is pruned, both sample again. They end at the first complete path that no other can beat, or when paths have
    `depth` steps, or the teacher has written `nodes`. `scorer` is the step checker, the teacher itself, or a function
    (a process reward model) that names itself in `name`. `refutation` keeps the first pruned branch beside the path
    that can be refuted.

    Raises `InputError` for a number outside of its limits, and for greedy sampling of several branches.
    """
    options = {"branching": branching, "beam": beam, "depth": depth, "nodes": nodes}
    _check(options, search, sampling)
    score = _score(scorer, sampling, seed)
    named = scorer if isinstance(scorer, str) else getattr(scorer, "name", "scorer")
    pool = exemplars or ExemplarPool()

    def talk(problem: Problem, can_continue: bool) -> Talk[Candidate]:
        shown = pool.of(problem)
        asked, limits = question(problem, shown), Limits(branching, depth, nodes)
        tree = Tree(asked, problem, limits, sampling, seed, score, can_continue=can_continue)
        best = yield from (best_first(tree) if search == "best" else breadth_first(tree, beam))
        ids = [exemplar.id for exemplar in shown]
        how = described(
            "tree", sampling, search=search, **options, scorer=named, refutation=refutation, exemplars=ids
        )
        return _candidate(problem, tree, best, refutation, seed, how)

    def elicit(problems: Sequence[Problem], teacher: Teacher) -> Iterator[tuple[int, list[Candidate]]]:
        talks = (talk(problem, teacher.can_continue) for problem in problems)
        for index, candidate in advance(talks, teacher):
            yield index, [candidate]

    return elicit


def breadth_first(tree: Tree, beam: int) -> Talk[Node | None]:
    """Level by level, the `beam` best paths of each; a level that all is pruned of is sampled again."""
    paths = [tree.root]
    while not paths[0].text:
        before = tree.written
        children = yield from tree.expand([node for node in paths if not node.text])
        complete = [node for node in paths if node.text]
        alive = [*complete, *(node for node in children if node.value > 0)]
        if alive:
            paths = sorted(alive, key=lambda node: node.rank)[:beam]
        elif tree.written == before:
            return None
    return paths[0]


def best_first(tree: Tree) -> Talk[Node | None]:
    """The best node of all is expanded, until it is complete; dead ends are sampled again when nothing else is left.

    As no path is worth more than its beginning, no other path of the tree can then be better.
    """
    queue = [(0, tree.root.rank, tree.root)]
    while queue:
        tries, _, node = heapq.heappop(queue)
        if node.text:
            return node
        before = tree.written
        children = yield from tree.expand([node])
        alive = [child for child in children if child.value > 0]
        for child in alive:
            heapq.heappush(queue, (0, child.rank, child))
        if not alive and tree.written > before:
            heapq.heappush(queue, (tries + 1, node.rank, node))
    return None


def _score(scorer: Scorer | str, sampling: Sampling, seed: int) -> Score:
    if scorer == "teacher":
        return by_teacher(sampling, seed)
    if scorer == "checker":
        return by_scorer(checker_score)
    if isinstance(scorer, str):
        raise InputError("bad-scorer", f"scorer is {scorer[:40]!r}", "it must be checker or teacher")
    return by_scorer(scorer)


def _check(options: dict[str, int], search: str, sampling: Sampling) -> None:
    if search not in get_args(Search):
        raise InputError(
            "bad-search", f"search is {search[:40]!r}", f"it must be {' or '.join(get_args(Search))}"
        )
    for name, value in options.items():
        if not 1 <= value <= _MOST[name]:
            raise InputError(f"bad-{name}", f"{name} is {value}", f"it must be from 1 to {_MOST[name]}")
    if sampling.temperature == 0 and options["branching"] > 1:
        raise InputError(
            "greedy-branches",
            f"{options['branching']} branches at temperature 0 are all the same",
            "raise the temperature, or take one branch",
        )


def _candidate(
    problem: Problem, tree: Tree, best: Node | None, refutation: bool, seed: int, sampling: dict[str, Any]
) -> Candidate:
    """The path as one attempt; without a complete one the best beginning, marked as not to be used."""
    notes: dict[str, Any] = {
        "nodes": len(tree.nodes) - 1,
        "expanded": tree.expanded,
        "written": tree.written,
        "pruned": sum(node.value == 0 for node in tree.nodes),
    }
    reason = "stop"
    if best is None:
        reason = "error" if _only_errors(tree) else "length"
        notes["error"] = next((one.error for one in tree.failures if one.error), "no path was completed")
        alive = (node for node in tree.nodes if node.value)
        best = min(alive, key=lambda node: (-len(node.steps), node.rank))
    notes["value"] = round(best.value, 6)
    branch = _refuted_beside(tree, best) if refutation else None
    notes |= {"refutation": branch[0]} if branch else {}
    reasoning = "\n".join(_lines(best.steps, branch))
    messages = (
        {"role": "user", "content": problem.problem},
        {"role": "assistant", "content": best.text, "reasoning_content": reasoning},
    )
    return Candidate(messages, reasoning, best.text, reason, seed, sampling, notes)


def _only_errors(tree: Tree) -> bool:
    return len(tree.nodes) == 1 and any(one.finish_reason == "error" for one in tree.failures)


def _refuted_beside(tree: Tree, best: Node) -> tuple[int, str, str] | None:
    """The first pruned step that branches off the path: before which step, it, and its refutation."""
    for node in tree.nodes:
        at = len(node.steps) - 1
        if node.value or node.parent is None or node.text or node.steps[:at] != best.steps[:at]:
            continue
        if at < len(best.steps) and (said := refutation_of(node.steps[at])):
            return at, node.steps[at], said
    return None


def _lines(steps: Sequence[str], branch: tuple[int, str, str] | None) -> list[str]:
    if branch is None:
        return list(steps)
    at, wrong, said = branch
    return [*steps[:at], wrong, said, *steps[at:]]
