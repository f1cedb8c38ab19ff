"""A Jinja chat template, taken apart once: from then on strings are joined and no Jinja runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from itertools import takewhile
from typing import Any

from edge_distill_runtime.errors import BundleError, InputError, MissingExtra
from edge_distill_runtime.text.chat import ChatSegments, ReasoningMarkers, render
from edge_distill_runtime.text.child import ChildFailed, ask_child

__all__ = ["PROBES", "check_segments", "derive_segments", "find_markers"]

_SECONDS = 5.0
_MEMORY = 256 << 20
_MOST_CHARACTERS = 1 << 20
_HINT = "use a template that only puts text around the contents"

Messages = Sequence[Mapping[str, str]]

# Sentinels that no template contains; letters only, so that nothing is trimmed or escaped.
_SYSTEM, _USER, _ASSISTANT, _LAST = "SysContent", "UserContent", "AssistantContent", "LastContent"

# Conversations whose prompts must come out byte for byte as the template renders them.
PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is 17 + 25?"}],
    [
        {"role": "system", "content": "Reason step by step."},
        {"role": "user", "content": "Name a prime > 10."},
    ],
    [
        {"role": "user", "content": "Hi 👋🏽, naïve café — ok?"},
        {"role": "assistant", "content": "Ready."},
        {"role": "user", "content": "def f(x):\n\treturn {'a': x}  # {{ braces }} {% raw %}"},
    ],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  spaces around  \n"},
        {"role": "assistant", "content": "yes\n"},
        {"role": "user", "content": "<|im_end|> مرحبا"},
    ],
)

# What the segments are read from: turns, and whether the assistant is invited to speak.
_SYSTEM_TURN, _USER_TURN, _ASSISTANT_TURN, _LAST_TURN = (
    {"role": role, "content": content}
    for role, content in (
        ("system", _SYSTEM),
        ("user", _USER),
        ("assistant", _ASSISTANT),
        ("user", _LAST),
    )
)
_SHAPES: dict[str, tuple[Messages, bool]] = {
    "spaced": ([{"role": "user", "content": f" {_USER} "}], False),
    "question": ([_USER_TURN], False),
    "prompt": ([_USER_TURN], True),
    "dialogue": ([_USER_TURN, _ASSISTANT_TURN, _LAST_TURN], True),
    "answered": ([_USER_TURN, _ASSISTANT_TURN], False),
    "instructed": ([_SYSTEM_TURN, _USER_TURN], False),
    "instructed prompt": ([_SYSTEM_TURN, _USER_TURN], True),
}


def derive_segments(template: str, special_tokens: Mapping[str, Any], name: str) -> ChatSegments:
    """The segments of a Jinja template, proven on `PROBES`.

    `special_tokens` are the names and texts that it may use (`bos_token`, `eos_token`). Raises `InputError`
    "chat-template" when it does more than put strings around contents, `BundleError` "hostile-template" when
    rendering took more than 5 seconds or 256 MiB.
    """
    rendered = _render_all(template, special_tokens, name)
    bos, eos = (str(special_tokens.get(key) or "") for key in ("bos_token", "eos_token"))
    segments = _segments(rendered, bos, eos)
    _compare(rendered, segments)
    return segments


def check_segments(
    segments: ChatSegments, template: str, special_tokens: Mapping[str, Any], name: str
) -> int:
    """Compare segments with a template on `PROBES`, byte for byte; the number of prompts compared.

    Raises as `derive_segments` does.
    """
    return _compare(_render_all(template, special_tokens, name), segments)


def find_markers(template: str, added_tokens: Iterable[str]) -> ReasoningMarkers | None:
    """The markers around reasoning that the template or the vocabulary shows; None when there are none."""
    vocabulary = set(added_tokens)
    for name in ("think", "thinking", "reasoning"):
        markers = ReasoningMarkers(f"<{name}>", f"</{name}>")
        if markers.close in template or {markers.open, markers.close} <= vocabulary:
            return markers
    return None


class _Rendered:
    """What a template made of the shapes and the probes."""

    def __init__(self, name: str, texts: Sequence[Mapping[str, str]]) -> None:
        self.name = name
        self._shapes = dict(zip(_SHAPES, texts, strict=False))
        self.probes = list(texts[len(_SHAPES) :])

    def __getitem__(self, shape: str) -> str:
        return self.text_of(self._shapes[shape])

    def attempt(self, shape: str) -> str | None:
        """None when the template refuses these roles."""
        return self._shapes[shape].get("text")

    def text_of(self, answer: Mapping[str, str]) -> str:
        if "text" not in answer:
            raise self.no_segments(f"it refuses a conversation, {answer['error']}")
        return answer["text"]

    def no_segments(self, why: str) -> InputError:
        return InputError(
            "chat-template", f"the chat template of {self.name} cannot be stored as segments: {why}", _HINT
        )


def _render_all(template: str, special_tokens: Mapping[str, Any], name: str) -> _Rendered:
    """Render every shape and probe, in one process with limits."""
    if len(template) > _MOST_CHARACTERS:
        raise BundleError(
            "hostile-template",
            f"the chat template of {name} has {len(template)} characters, the limit is {_MOST_CHARACTERS}",
            "do not use this model, or replace its template",
        )
    conversations = [*_SHAPES.values(), *((probe, True) for probe in PROBES)]
    request = {
        "template": template,
        "special_tokens": dict(special_tokens),
        "conversations": [
            {"messages": messages, "add_generation_prompt": invites} for messages, invites in conversations
        ],
    }
    if find_spec("jinja2") is None:
        raise MissingExtra("missing-jinja2", "a chat template takes jinja2", "pip install jinja2")
    try:
        answer = ask_child(
            "edge_distill_runtime.text.template_worker", request, seconds=_SECONDS, memory_bytes=_MEMORY
        )
    except ChildFailed as exc:
        limits = {
            "time": f"took more than {_SECONDS:g} seconds",
            "memory": f"needs more than {_MEMORY >> 20} MiB",
        }
        what = limits.get(exc.reason, f"ended the process that renders it (exit status {exc.status})")
        raise BundleError(
            "hostile-template",
            f"the chat template of {name} {what}",
            "do not use this model, or replace its template",
        ) from exc
    if "error" in answer:
        raise InputError(
            "chat-template", f"the chat template of {name} is no Jinja template: {answer['error']}", _HINT
        )
    return _Rendered(name, answer["texts"])


def _segments(rendered: _Rendered, bos: str, eos: str) -> ChatSegments:
    closed = rendered["question"]
    if closed.count(_USER) != 1:
        raise rendered.no_segments("it changes contents")
    before_user, after_user = closed.split(_USER)
    prompt = rendered["prompt"].split(_USER)[-1]
    if not prompt.startswith(after_user):  # Phi-3 closes a conversation that does not go on by the end token
        after_user = after_user.removesuffix(eos)
    if not prompt.startswith(after_user):
        raise rendered.no_segments("the generation prompt changes the user's turn")
    head, middle, between, _ = _split(rendered["dialogue"], (_USER, _ASSISTANT, _LAST))
    if head != before_user or not middle.startswith(after_user):
        raise rendered.no_segments("a turn depends on the turns after it")
    after_assistant, user = _split_turns(rendered.attempt("answered"), between, before_user, eos)
    rest = before_user.removesuffix(user)
    opens_system = _system_starts_with(rendered.attempt("instructed prompt"), bos, rest)
    prefix = bos if bos and rest.startswith(bos) and not opens_system else ""
    system, joins = _system_segments(rendered.attempt("instructed"), prefix, user)
    return ChatSegments(
        prefix=prefix,
        default_system=rest.removeprefix(prefix),
        system=system,
        user=(user, after_user),
        assistant=(middle.removeprefix(after_user), after_assistant),
        generation_prompt=prompt.removeprefix(after_user),
        strips_content=f" {_USER} " not in rendered["spaced"],
        system_joins_user=joins,
    )


def _compare(rendered: _Rendered, segments: ChatSegments) -> int:
    compared = 0
    for messages, answer in zip(PROBES, rendered.probes, strict=True):
        if segments.system is None and messages[0]["role"] == "system":
            continue
        expected = rendered.text_of(answer)
        found = render(segments, messages)
        if found != expected:
            at = len(_common_prefix(found, expected))
            raise rendered.no_segments(
                f"at character {at} it gives {expected[at : at + 40]!r}, the segments {found[at : at + 40]!r}"
            )
        compared += 1
    return compared


def _split_turns(closed: str | None, between: str, head: str, eos: str) -> tuple[str, str]:
    """Split what stands between an assistant's and a user's content into one's end and the other's start."""
    full = closed.split(_ASSISTANT)[-1] if closed else ""
    for after in (full, full.removesuffix(eos)):
        if between.startswith(after) and head.endswith(between.removeprefix(after)):
            return after, between.removeprefix(after)
    # The template closes a last turn in its own way: whatever also starts the conversation belongs to the user.
    user = _common_prefix(between[::-1], head[::-1])[::-1]
    return between.removesuffix(user), user


def _system_starts_with(text: str | None, bos: str, rest: str) -> bool:
    """Whether the bos token only opens the default system turn (SmolLM2: bos is `<|im_start|>`)."""
    return bool(bos) and rest != bos and text is not None and text.count(bos) > 1


def _system_segments(text: str | None, prefix: str, user: str) -> tuple[tuple[str, str] | None, bool]:
    """What stands around a system message, and whether it stands inside the user's turn."""
    if text is None or _SYSTEM not in text:
        return None, False
    before, after, _ = _split(text, (_SYSTEM, _USER))
    if after.endswith(user):
        return (before.removeprefix(prefix), after.removesuffix(user)), False
    return (before.removeprefix(prefix).removeprefix(user), after), True


def _split(text: str, sentinels: tuple[str, ...]) -> list[str]:
    """The parts of `text` around sentinels, each of which stands in it once."""
    parts = []
    for sentinel in sentinels:
        part, _, text = text.partition(sentinel)
        parts.append(part)
    return [*parts, text]


def _common_prefix(first: str, second: str) -> str:
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
