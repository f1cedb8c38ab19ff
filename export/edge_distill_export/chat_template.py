"""The chat template, taken apart once: the device joins the segments and never runs Jinja."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any

from edge_distill_runtime.chat import ChatSegments, ReasoningMarkers, render
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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


def chat_segments(tokenizer: PreTrainedTokenizerFast) -> ChatSegments | None:
    """The segments of a tokenizer's chat template, proven on `PROBES`; None when it has no template.

    Raises `InputError` when the template does more than put strings around contents.
    """
    if not tokenizer.chat_template:
        return None
    template = _Template(tokenizer)
    strips = f" {_USER} " not in template([("user", f" {_USER} ")])
    closed = template([("user", _USER)])
    if closed.count(_USER) != 1:
        raise _not_segments(tokenizer, "it changes contents")
    before_user, after_user = closed.split(_USER)
    prompt = template([("user", _USER)], generation_prompt=True).split(_USER)[-1]
    if not prompt.startswith(after_user):  # Phi-3 closes a conversation that does not go on by the end token
        after_user = after_user.removesuffix(tokenizer.eos_token or "")
    if not prompt.startswith(after_user):
        raise _not_segments(tokenizer, "the generation prompt changes the user's turn")
    head, middle, between, _ = _split(
        template([("user", _USER), ("assistant", _ASSISTANT), ("user", _LAST)], generation_prompt=True),
        (_USER, _ASSISTANT, _LAST),
    )
    if head != before_user or not middle.startswith(after_user):
        raise _not_segments(tokenizer, "a turn depends on the turns after it")
    after_assistant, user = _split_turns(template, between, before_user, tokenizer.eos_token or "")
    rest = before_user.removesuffix(user)
    bos = tokenizer.bos_token or ""
    prefix = bos if bos and rest.startswith(bos) and not _system_starts_with(template, bos, rest) else ""
    system, joins = _system_segments(template, prefix, user)
    segments = ChatSegments(
        prefix=prefix,
        default_system=rest.removeprefix(prefix),
        system=system,
        user=(user, after_user),
        assistant=(middle.removeprefix(after_user), after_assistant),
        generation_prompt=prompt.removeprefix(after_user),
        strips_content=strips,
        system_joins_user=joins,
    )
    check_chat(tokenizer, segments)
    return segments


def check_chat(tokenizer: PreTrainedTokenizerFast, segments: ChatSegments) -> int:
    """Compare the segments with the template on `PROBES`, byte for byte; the number of prompts compared."""
    template = _Template(tokenizer)
    compared = 0
    for messages in PROBES:
        if segments.system is None and messages[0]["role"] == "system":
            continue
        expected = template([(m["role"], m["content"]) for m in messages], generation_prompt=True)
        found = render(segments, messages)
        if found != expected:
            at = len(_common_prefix(found, expected))
            raise _not_segments(
                tokenizer,
                f"at character {at} it gives {expected[at : at + 40]!r}, the segments {found[at : at + 40]!r}",
            )
        compared += 1
    return compared


def reasoning_markers(tokenizer: PreTrainedTokenizerFast) -> ReasoningMarkers | None:
    """The markers around reasoning that the template or the vocabulary shows; None when there are none."""
    text = str(tokenizer.chat_template or "")
    vocabulary = tokenizer.get_added_vocab()
    for name in ("think", "thinking", "reasoning"):
        markers = ReasoningMarkers(f"<{name}>", f"</{name}>")
        if markers.close in text or {markers.open, markers.close} <= vocabulary.keys():
            return markers
    return None


class _Template:
    """Calls the tokenizer's template on (role, content) pairs."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def __call__(self, turns: list[tuple[str, str]], generation_prompt: bool = False) -> str:
        messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in turns]
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation_prompt
        )
        return str(text)

    def attempt(self, turns: list[tuple[str, str]], generation_prompt: bool = False) -> str | None:
        """As above, or None when the template refuses these roles."""
        from jinja2 import TemplateError

        try:
            return self(turns, generation_prompt)
        except TemplateError:
            return None


def _split_turns(template: _Template, between: str, head: str, eos: str) -> tuple[str, str]:
    """Split what stands between an assistant's and a user's content into the end of one and the start of the other."""
    closed = template.attempt([("user", _USER), ("assistant", _ASSISTANT)])
    full = closed.split(_ASSISTANT)[-1] if closed else ""
    for after in (full, full.removesuffix(eos)):
        if between.startswith(after) and head.endswith(between.removeprefix(after)):
            return after, between.removeprefix(after)
    # The template closes a last turn in its own way: whatever also starts the conversation belongs to the user.
    user = _common_prefix(between[::-1], head[::-1])[::-1]
    return between.removesuffix(user), user


def _system_starts_with(template: _Template, bos: str, rest: str) -> bool:
    """Whether the bos token only opens the default system turn (SmolLM2: bos is `<|im_start|>`)."""
    text = template.attempt([("system", _SYSTEM), ("user", _USER)], generation_prompt=True)
    return rest != bos and text is not None and text.count(bos) > 1


def _system_segments(template: _Template, prefix: str, user: str) -> tuple[tuple[str, str] | None, bool]:
    """What stands around a system message, and whether it stands inside the user's turn."""
    text = template.attempt([("system", _SYSTEM), ("user", _USER)])
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


def _not_segments(tokenizer: PreTrainedTokenizerFast, why: str) -> InputError:
    return InputError(
        "chat-template",
        f"the chat template of {tokenizer.name_or_path} cannot be stored as segments: {why}",
        "use a template that only puts text around the contents",
    )
