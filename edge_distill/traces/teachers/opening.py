"""From a specification, `hf:DIR`, to a teacher."""

from __future__ import annotations

from edge_distill.traces.teachers.teacher import Teacher
from edge_distill_runtime.errors import InputError

__all__ = ["open_teacher"]

_KINDS = ("solver", "hf", "bundle", "gguf", "openai")


def open_teacher(spec: str, *, at_once: int = 8, deadline: float = 600.0) -> Teacher:
    """The teacher that a specification names.

    - `solver:` knows some families of reasoning-gym and is never wrong.
    - `hf:DIR`: a Hugging Face checkpoint, an adapter or a hub's name, run by transformers, on the GPU if there is one.
    - `bundle:DIR` and `gguf:FILE`: what the runtime runs.
    - `openai:URL?model=NAME`: a server with `/v1/chat/completions` (vLLM, llama-server, Ollama); the key in
      `OPENAI_API_KEY` goes with every request, if there is one.

    `at_once` requests run together. `deadline` is the most seconds that a server may take for one of them, waits
    and all tries counted. Raises `InputError` for a specification that is none, and what the opening raises.
    """
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in _KINDS or bool(rest) != (kind != "solver"):
        raise InputError(
            "unknown-teacher",
            f"there is no teacher {spec[:200]!r}",
            "give solver:, hf:DIR, bundle:DIR, gguf:FILE or openai:URL?model=NAME",
        )
    if at_once < 1:
        raise InputError("bad-at-once", f"{at_once} requests at once", "it must be at least 1")
    if kind == "solver":
        from edge_distill.traces.teachers.solver import SolverTeacher

        return SolverTeacher()
    if kind == "hf":
        from edge_distill.traces.teachers.hf import HuggingFaceTeacher

        return HuggingFaceTeacher(rest, batch_size=at_once)
    if kind == "openai":
        from edge_distill.traces.teachers.openai import OpenAITeacher

        return OpenAITeacher(rest, at_once=at_once, deadline=deadline)
    from edge_distill.traces.teachers.runtime import RuntimeTeacher

    return RuntimeTeacher(kind, rest, at_once=at_once)
