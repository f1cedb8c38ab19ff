"""A tree of reasoning steps about one problem: the teacher proposes nodes; they are told apart, scored and counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, replace

from edge_distill.traces.checker import check_step
from edge_distill.traces.rounds import Ask, Talk, derived_seed
from edge_distill.traces.steps import split_steps
from edge_distill.traces.teachers.teacher import Request, Sampling, Written
from edge_distill.traces.tree_scores import Score
from edge_distill_bench.problem import Problem
from edge_distill_runtime.reasoning.answers import extract_answer, parse_answer

__all__ = ["Limits", "Node", "Tree", "normalized"]

NEXT_STEP = """Solve the problem step by step, one step at a time.

Problem: {problem}

Steps so far:
{steps}

Write only the next step, on one line. When the steps give the answer, write "Final Answer:" and the answer instead."""

_MAX_STEP = 1_000  # characters; a longer line is no step
_NUMBERING = re.compile(r"^(?:[-*•>#\s]+|\(?\d{1,2}[.)]\s+|step \d{1,2}[.:)]\s*)+")
_AROUND_SIGNS = re.compile(r"\s*([^\w\s])\s*")


@dataclass(frozen=True)
class Limits:
    """How large a tree may grow."""

    branching: int
    """Steps that are sampled from a node."""
    depth: int
    """Steps of a path."""
    nodes: int
    """Steps that the teacher writes in all, those that it wrote before included."""


@dataclass(frozen=True)
class Node:
    """The steps up to here, and the answer's text when they are complete."""

    steps: tuple[str, ...]
    value: float
    """The lowest score of the steps up to any point, so that no path is worth more than its beginning; 0 is pruned."""
    order: int
    parent: Node | None = None
    text: str = ""
    votes: int = 1
    """How many samples proposed it."""

    @property
    def rank(self) -> tuple[float, bool, int, int, int]:
        """The lowest goes first: the best, and of equals the complete, the deeper, the more often proposed."""
        return (-self.value, not self.text, -len(self.steps), -self.votes, self.order)


@dataclass(frozen=True)
class _Proposal:
    """A path that a sample proposes; `has_ended` when the answer's text is still to be asked for."""

    steps: tuple[str, ...]
    text: str = ""
    has_ended: bool = False


_Key = tuple[int, tuple[str, ...], Hashable]  # parent, path, answer


class Tree:
    """Grows on demand; the search decides where."""

    def __init__(
        self,
        question: tuple[dict[str, str], ...],
        problem: Problem,
        limits: Limits,
        sampling: Sampling,
        seed: int,
        score: Score,
        *,
        can_continue: bool,
    ) -> None:
        """`question` is the conversation that ends in the problem."""
        self._question, self._problem = question, problem
        self._limits, self._sampling, self._seed, self._score = limits, sampling, seed, score
        self._can_continue = can_continue
        self._has_markers = False  # whether the teacher has set reasoning apart from its text
        self.root = Node((), 1.0, 0)
        self.nodes = [self.root]
        self.written = 0
        """Steps that the teacher was asked for."""
        self.expanded = 0
        self.failures: list[Written] = []
        self._asked: dict[int, int] = {}  # samples of a node, by its order
        self._known: set[_Key] = set()
        self._is_broken = False

    def expand(self, parents: list[Node]) -> Talk[list[Node]]:
        """Sample the next step of each node, as far as the limits allow; the new nodes, each once, pruned ones too.

        A node may be expanded again: other samples are drawn. When all are errors, nothing is asked any more.
        """
        asks: list[Ask] = []
        owners: list[Node] = []
        for parent in parents:
            count = min(self._limits.branching, self._limits.nodes - self.written)
            if count <= 0 or len(parent.steps) >= self._limits.depth or self._is_broken:
                continue
            self.expanded += 1
            self.written += count
            first = self._asked.get(parent.order, 0)
            self._asked[parent.order] = first + count
            asks += [self._step_ask(parent.steps, sample) for sample in range(first, first + count)]
            owners += [parent] * count
        if not asks:
            return []
        answers = yield asks
        self._note(answers)
        self._is_broken = all(answer.finish_reason == "error" for answer in answers)
        proposals = [
            (owner, found)
            for owner, answer in zip(owners, answers, strict=True)
            if (found := self._read(answer, owner.steps))
        ]
        proposals = yield from self._finished(proposals)
        return (yield from self._grown(proposals))

    def _step_ask(self, steps: tuple[str, ...], sample: int) -> Ask:
        seed = derived_seed(self._seed, self._problem.id, steps, sample)
        if self._can_continue:
            return self._continuation(steps, seed, "\n")
        shown = "\n".join(steps) or "(none)"
        prompt = NEXT_STEP.format(problem=self._problem.problem, steps=shown)
        messages = (*self._question[:-1], {"role": "user", "content": prompt})
        return Ask(Request(messages, seed, problem=self._problem), self._sampling)

    def _continuation(self, steps: tuple[str, ...], seed: int, *stop: str) -> Ask:
        begun = "".join(f"{step}\n" for step in steps)
        sampling = replace(self._sampling, stop=(*self._sampling.stop, *stop))
        return Ask(Request(self._question, seed, begun, self._problem), sampling)

    def _note(self, answers: list[Written]) -> None:
        self.failures += [answer for answer in answers if not answer.is_usable]
        if self._can_continue and any(answer.reasoning.strip() for answer in answers):
            self._has_markers = True

    def _parts(self, written: Written) -> tuple[list[str], str]:
        """Steps, and the answer's text behind them; a teacher without markers writes both as text."""
        if self._has_markers:
            return split_steps(written.reasoning), written.text.strip()
        return split_steps(written.text), ""

    def _read(self, written: Written, steps: tuple[str, ...]) -> _Proposal | None:
        """What a sample adds to `steps`; None when that is nothing, cut off, or there already."""
        found, text = self._parts(written)
        if not found:
            return self._ending(steps, text) if written.is_usable else None
        step, is_last = found[0], len(found) == 1 and not text
        if (is_last and not written.is_usable) or len(step) > _MAX_STEP:
            return None
        if not self._has_markers and _states_answer(step):
            # one that thought by itself before it answered has the steps there
            thought = () if self._can_continue or steps else split_steps(written.reasoning)
            return _Proposal((*steps, *thought), step)
        if normalized(step) in map(normalized, steps):
            return None
        if len(found) == 1 and text:
            return self._ending((*steps, step), text if written.is_usable else "")
        return _Proposal((*steps, step))

    def _ending(self, steps: tuple[str, ...], text: str) -> _Proposal | None:
        """A reasoning that has ended: its text may go on behind the line's end, unless it states the answer."""
        if _states_answer(text):
            return _Proposal(steps, text)
        return _Proposal(steps, has_ended=True) if self._can_continue else None

    def _finished(self, proposals: list[tuple[Node, _Proposal]]) -> Talk[list[tuple[Node, _Proposal]]]:
        """Ask for the text of those that have ended, once for equal ones."""
        ended = list(dict.fromkeys(found.steps for _, found in proposals if found.has_ended))
        if not ended:
            return proposals
        seeds = [derived_seed(self._seed, self._problem.id, steps, "answer") for steps in ended]
        answers = yield [self._continuation(*pair) for pair in zip(ended, seeds, strict=True)]
        self._note(answers)
        whole = {steps: self._rest(steps, answer) for steps, answer in zip(ended, answers, strict=True)}
        final = [(parent, whole[found.steps] if found.has_ended else found) for parent, found in proposals]
        return [(parent, found) for parent, found in final if found]

    def _rest(self, steps: tuple[str, ...], written: Written) -> _Proposal | None:
        """What a sample without a stop adds: the rest of the reasoning, and the answer's text, else the last line."""
        more, text = self._parts(written)
        lines = [*steps, *more]
        if not written.is_usable or not (lines or text):
            return None
        return _Proposal(tuple(lines), text) if text else _Proposal(tuple(lines[:-1]), lines[-1])

    def _grown(self, proposals: list[tuple[Node, _Proposal]]) -> Talk[list[Node]]:
        """Equal proposals become one node; scored, unless the checker refutes what they add."""
        votes: Counter[_Key] = Counter()
        different: dict[_Key, tuple[Node, _Proposal]] = {}
        for parent, found in proposals:
            path = tuple(map(normalized, found.steps))
            key = (parent.order, path, parse_answer(found.text).key if found.text else None)
            if key not in self._known:
                votes[key] += 1
                different.setdefault(key, (parent, found))
        self._known.update(different)
        values = yield from self._values(list(different.values()))
        first = len(self.nodes)
        self.nodes += [
            Node(found.steps, value, order, parent, found.text, votes[key])
            for order, (key, (parent, found), value) in enumerate(
                zip(different, different.values(), values, strict=True), first
            )
        ]
        return self.nodes[first:]

    def _values(self, proposals: list[tuple[Node, _Proposal]]) -> Talk[list[float]]:
        """A new node's value: 0 when a new step is refuted, its parent's when there is none."""
        values = []
        for parent, found in proposals:
            new = (*found.steps[len(parent.steps) :], found.text)
            values.append(0.0 if any(check_step(step) == "refuted" for step in new) else parent.value)
        judged = [
            i
            for i, (parent, found) in enumerate(proposals)
            if values[i] and len(found.steps) > len(parent.steps)
        ]
        scores = yield from self._score(self._problem, [proposals[i][1].steps for i in judged])
        for i, score in zip(judged, scores, strict=True):
            values[i] = min(values[i], score)
        return values


def normalized(step: str) -> str:
    """A step without numbering, case, and white space around signs: two steps that say the same are equal."""
    text = _NUMBERING.sub("", " ".join(step.casefold().split()))
    return _AROUND_SIGNS.sub(r"\1", text).rstrip(".!")


def _states_answer(text: str) -> bool:
    found = extract_answer(text)
    return found is not None and found.source in ("boxed", "hashes", "phrase")
