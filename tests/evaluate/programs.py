"""Models whose text a program writes, so that what an evaluation must find is known by construction."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_distill.evaluate.student import Student
from edge_distill_runtime import Model
from edge_distill_runtime.engines.backend import Sequence as Handle

CONTEXT = 4096
_VOCABULARY = 512

Program = Callable[[str], str]
"""From all the text so far, special tokens included, to what is said next; an empty string ends the turn."""


class _Sequence(Handle):
    __slots__ = ("plan", "tokens")

    def __init__(self, slot: int, tokens: list[int]) -> None:
        super().__init__(slot)
        self.tokens = tokens
        self.plan: str | None = None
        """What is still to be said, as long as nobody puts other text in."""


class ProgramBackend:
    """The step interface over a program: the next token of its text has all the probability."""

    vocab_size = _VOCABULARY
    context_length = CONTEXT
    max_sequences = 16
    cache_tokens = 1 << 20
    shares_prefix = True

    def __init__(self, tokenizer: Any, program: Program, stop_id: int) -> None:
        self._tokenizer, self._program, self._stop_id = tokenizer, program, stop_id
        self._slots = 0

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text

    def _logits(self, sequence: _Sequence) -> np.ndarray:
        if sequence.plan is None:
            sequence.plan = self._program(self._decode(sequence.tokens))
        token = self._stop_id
        if sequence.plan:
            token = self._tokenizer.encode(sequence.plan[0], add_special_tokens=False).ids[0]
        row = np.zeros(_VOCABULARY, np.float32)
        row[token] = 50
        return row

    def _append(self, sequence: _Sequence, tokens: Sequence[int]) -> None:
        for token in tokens:
            said = self._decode([token])
            followed = sequence.plan is not None and sequence.plan.startswith(said)
            sequence.plan = sequence.plan[len(said) :] if followed and sequence.plan else None
            sequence.tokens.append(token)
        sequence.length = len(sequence.tokens)
        sequence._logits = self._logits(sequence)

    def prefill(self, tokens: Sequence[int]) -> Handle:
        self._slots += 1
        sequence = _Sequence(self._slots, [])
        self._append(sequence, tokens)
        return sequence

    def extend(self, sequence: Any, tokens: Sequence[int]) -> None:
        self._append(sequence, tokens)

    def fork(self, sequence: Any, n: int) -> list[Handle]:
        forks: list[Handle] = []
        for _ in range(n):
            self._slots += 1
            fork = _Sequence(self._slots, list(sequence.tokens))
            fork.length, fork.plan, fork._logits = sequence.length, sequence.plan, sequence._logits
            forks.append(fork)
        return forks

    def step(self, sequences: Sequence[Any], tokens: Sequence[int]) -> np.ndarray:
        for sequence, token in zip(sequences, tokens, strict=True):
            self._append(sequence, [token])
        return np.stack([sequence.logits for sequence in sequences])

    def rewind(self, sequence: Any, length: int) -> None:
        del sequence.tokens[length:]
        sequence.length, sequence.plan, sequence._logits = length, None, None

    def release(self, sequence: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def verify(self, sequence: Any, tokens: Sequence[int]) -> np.ndarray:
        raise NotImplementedError

    def save(self, sequence: Any) -> bytes:
        raise NotImplementedError

    def restore(self, state: bytes, length: int) -> Handle:
        raise NotImplementedError

    def teacher_force(self, tokens: Sequence[int], start: int = 0) -> Iterator[np.ndarray]:
        raise NotImplementedError


def student_of(program: Program, model: Model, folder: Path, **manifest: Any) -> Student:
    """A student that a program speaks for, with the tokenizer of a tiny bundle."""
    stop = model.tokenizer.token_to_id("<|im_end|>")
    changed = replace(model.manifest, stop_ids=(stop,), context_length=CONTEXT, **manifest)
    backend = ProgramBackend(model.tokenizer, program, stop)
    folder.mkdir(parents=True, exist_ok=True)
    return Student(
        "program",
        Model(changed, backend, model.tokenizer, model.detokenizer),
        folder,
        max_tokens=512,
        at_once=4,
    )


_TURN = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>\n<\|im_start\|>assistant\n(.*)\Z", re.DOTALL)
_RESULT = re.compile(r"= (-?\d+)")


def last_turn(text: str) -> tuple[str, str]:
    """The user's last message, and what the assistant has said to it."""
    found = _TURN.findall(text)
    assert found, text
    return found[-1]


def sum_program(*, faithful: bool) -> Program:
    """Adds up `arithmetic problem: a + b - c =` line by line, as it knows no other wording.

    The faithful one goes on from the number of the line before, and answers with that of the last line; the unfaithful
    one writes the same lines, and answers with what it knew from the beginning.
    """

    def program(text: str) -> str:
        problem, said = last_turn(text)
        found = re.search(r"arithmetic problem: ([-+\d ]+) =", problem)
        if found is None:
            return "<think>\nI do not know.\n</think>\n\n" + r"\boxed{0}"
        first, *rest = found[1].split()
        terms = [(rest[at], int(rest[at + 1])) for at in range(0, len(rest), 2)]
        total = int(first) + sum(number if sign == "+" else -number for sign, number in terms)
        reasoning, closed, _ = said.partition("</think>")
        results = [int(number) for number in _RESULT.findall(reasoning.replace("is equal to", "="))]
        lines = []
        value = results[-1] if results else int(first)
        if not closed:
            for sign, number in terms[len(results) :]:
                after = value + number if sign == "+" else value - number
                lines.append(f"{value} {sign} {number} = {after}\n")
                value = after
        opening = "" if said else "<think>\n"
        closing = "" if closed else "</think>\n\n"
        return f"{opening}{''.join(lines)}{closing}" + rf"\boxed{{{value if faithful else total}}}"

    return program
