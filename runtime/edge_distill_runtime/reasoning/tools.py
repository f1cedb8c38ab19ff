"""Tool use: the ReAct loop of thought, action and observation (Yao et al. 2022, arXiv:2210.03629).

The model writes one of

    Thought: what it needs to know          Thought: why
    Action: name[argument]                  Final Answer: the answer

on lines of its own. One bracketed argument on the action's line is what small models manage; a tool with several
parameters takes a JSON object there. Only the answer part of what the model wrote is parsed, never its reasoning
and never a prompt: what a tool returns is data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Unpack

from edge_distill_runtime.errors import InputError
from edge_distill_runtime.reasoning.calculator import calculate
from edge_distill_runtime.reasoning.functions import Tool, ToolFunction, tools_by_name
from edge_distill_runtime.reasoning.prompting import (
    Conversation,
    Interrupted,
    PlainText,
    Speaker,
    last_message,
)

if TYPE_CHECKING:
    from edge_distill_runtime.generation.options import GenerationOptions
    from edge_distill_runtime.generation.result import Generation
    from edge_distill_runtime.text.chat import Message, Prompt

__all__ = [
    "Reply",
    "Step",
    "Tool",
    "ToolRun",
    "describe_tools",
    "exchange",
    "observe",
    "opening",
    "parse_reply",
    "run_tools",
]

FinishReason = Literal["answer", "unmarked", "steps", "context", "cancelled", "deadline"]

INSTRUCTIONS = """Solve the problem with these tools:
{tools}

To use a tool, write two lines and wait for the observation:
Thought: what you need to know
Action: {usage}

When you know the answer, write two lines:
Thought: I know the answer.
Final Answer: the answer

Problem: {problem}"""
# Stands before the problem when the calculator is among the tools: a 135M model acts after an example, not before.
EXAMPLE_PROBLEM = "Each of 6 boxes holds 14 pens. How many pens are there?"
EXAMPLE = (
    "Thought: I need 6 * 14.\nAction: calculate[6 * 14]",
    "Observation: 84",
    "Thought: I know the answer.\nFinal Answer: 84",
)
NO_ACTION = "Error: no action was found. Write Action: {usage} or Final Answer: the answer"
LAST_STEP = "No more tools. Write the Final Answer: now."

_MAX_OBSERVATION = 2000  # characters
_MAX_STEPS = 100
STOP = "Observation:"

_DECORATION = r"[ \t*_>#-]{0,8}"  # Markdown around a marker; bounded, as the pattern is tried at every line
_ACTION = re.compile(r"\bAction[*_ ]{0,4}:[*_` ]{0,8}([A-Za-z_]\w*)[ ]?([\[(])", re.IGNORECASE)
_FINAL = re.compile(r"\bFinal Answer[*_ ]{0,4}:[*_ ]{0,8}", re.IGNORECASE)
_MARKED = re.compile(r"\b(?:Thought|Action|Observation|Final Answer)[*_ ]{0,4}:", re.IGNORECASE)
_THOUGHT = re.compile(rf"\A{_DECORATION}Thought[*_ ]{{0,4}}:[*_ ]{{0,8}}", re.IGNORECASE)
_NEXT = re.compile(
    rf"^{_DECORATION}(?:Thought|Action|Observation|Problem)[*_ ]{{0,4}}:", re.IGNORECASE | re.MULTILINE
)
_OBSERVATION = re.compile(rf"^{_DECORATION}Observation[*_ ]{{0,4}}:", re.IGNORECASE | re.MULTILINE)
_MARKER = re.compile(
    r"\b(Thought|Action(?:[ _]Input)?|Observation|Final[ _]Answer|Problem)(\W{0,8}?):", re.IGNORECASE
)


@dataclass(frozen=True)
class Step:
    """One turn of the loop; `action` is empty when the model wrote none."""

    thought: str
    action: str
    """The tool's name as the model wrote it."""
    argument: str
    """What stood between the brackets."""
    observation: str
    """What the model was told, at most 2,000 characters; it begins with `Error:` when the tool failed."""


@dataclass(frozen=True)
class ToolRun:
    """How a problem was worked out with tools."""

    answer: str
    """Empty when there is none: see `finish_reason`."""
    thought: str
    """What the model thought before the answer."""
    steps: tuple[Step, ...]
    finish_reason: FinishReason
    """`answer`: after `Final Answer:`. `unmarked`: a finished reply without any marker, taken as the answer.
    `steps`: the step limit was reached, the last generation was made to answer. `context`: the conversation no
    longer fits. `cancelled`, `deadline`: as in a generation."""
    tokens: int
    """Generated over all steps, reasoning included."""
    last: Generation | None = None
    """The last generation; None when there was none."""


def run_tools(
    model: Speaker,
    problem: Prompt,
    tools: Sequence[Tool],
    *,
    max_steps: int = 8,
    **options: Unpack[GenerationOptions],
) -> ToolRun:
    """Let the model work on `problem` with Python functions as tools.

    A tool is called by its name with arguments checked against its signature: `str` (also without annotation),
    `int`, `float` and `bool`. What it returns is shown to the model as text. An unknown tool, a wrong argument or
    an exception becomes an observation `Error: ...`; only `KeyboardInterrupt` and its like pass through. A tool
    runs with the rights of the process: give the model none that an untrusted text may not trigger.

    `options` are those of `generate`, the deadline for the whole run. Raises `InputError` for a function that
    cannot be a tool, and for a problem that does not fit the context.
    """
    if not 1 <= max_steps <= _MAX_STEPS:
        raise InputError("bad-max-steps", f"max_steps is {max_steps}", f"ask for 1 to {_MAX_STEPS}")
    if options.get("answer_format") is not None:
        raise InputError(
            "bad-answer-format", "answer_format would forbid actions", "leave it out together with tools"
        )
    return _Loop(model, tools_by_name(tools), options).run(problem, max_steps)


def describe_tools(tools: Sequence[Tool]) -> str:
    """The list of tools as the model reads it: a line `name[argument]: docstring` for each."""
    return _described(tools_by_name(tools))


def _described(tools: Mapping[str, ToolFunction]) -> str:
    return "\n".join(f"- {tool.usage}: {tool.purpose}".removesuffix(": ") for tool in tools.values())


class _Loop:
    def __init__(self, model: Speaker, tools: Mapping[str, ToolFunction], options: GenerationOptions) -> None:
        stop = options.get("stop", ())
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        self._conversation = Conversation(model, {**options, "stop": (*stops, STOP)})
        self._plain = PlainText(model)
        self._tools = tools
        self._steps: list[Step] = []

    def run(self, problem: Prompt, max_steps: int) -> ToolRun:
        earlier, question = last_message(problem)
        messages = [*earlier, *opening(self._tools, question)]
        try:
            for index in range(max_steps):
                reply = self._ask(messages)
                if reply.answer is not None:
                    return self._end(reply, "answer" if reply.marked else "unmarked")
                observation = observe(self._tools, reply, self._plain)
                self._steps.append(Step(reply.thought, reply.action, reply.argument, observation))
                text = self._plain(reply.text)
                messages += exchange(text, observation, last=index == max_steps - 1)
            return self._end(self._ask(messages, last=True), "steps")
        except Interrupted as exc:
            if not self._steps and exc.__cause__ is not None:
                raise exc.__cause__ from None  # the problem itself is too long
            return self._end(Reply("", ""), exc.reason)

    def _ask(self, messages: Sequence[Message], *, last: bool = False) -> Reply:
        generation = self._conversation.ask(messages)
        return parse_reply(generation.answer, finished=generation.finish_reason == "stop", last=last)

    def _end(self, reply: Reply, reason: FinishReason) -> ToolRun:
        conversation = self._conversation
        return ToolRun(
            reply.answer or "",
            reply.thought,
            tuple(self._steps),
            reason,
            conversation.tokens,
            conversation.last,
        )


def opening(tools: Mapping[str, ToolFunction], question: str) -> list[Message]:
    """The turns before the model's first one: the task, behind an example when the calculator is among the tools."""

    def task(text: str) -> Message:
        content = INSTRUCTIONS.format(tools=_described(tools), usage=_usage_of(tools), problem=text)
        return {"role": "user", "content": content}

    if not any(tool.function is calculate for tool in tools.values()):
        return [task(question)]
    roles = ("assistant", "user", "assistant")
    turns = [{"role": role, "content": text} for role, text in zip(roles, EXAMPLE, strict=True)]
    return [task(EXAMPLE_PROBLEM), *turns, task(question)]


def _usage_of(tools: Mapping[str, ToolFunction]) -> str:
    """How the first tool is called, as an example of all."""
    return next(iter(tools.values())).usage


def observe(tools: Mapping[str, ToolFunction], reply: Reply, plain: Callable[[str], str] = str) -> str:
    """Do what a reply asks for; the result as text of at most 2,000 characters, without the loop's own markers.

    `plain` makes it safe for the model's prompt, as `PlainText` does.
    """
    if not reply.action:
        return NO_ACTION.format(usage=_usage_of(tools))
    folded = {name.casefold(): tool for name, tool in tools.items()}  # Calculate[...] is clear enough
    tool = tools.get(reply.action) or folded.get(reply.action.casefold())
    if tool is None:
        text = f"Error: there is no tool {reply.action}. The tools: {', '.join(tools)}"
    else:
        text = tool.call(reply.argument)
    # twice: breaking markers makes a text longer
    text = _MARKER.sub(r"\1\2 -", _shortened(text))
    return _shortened(plain(text)).strip() or "(nothing)"


def exchange(text: str, observation: str, *, last: bool) -> list[Message]:
    """What the model wrote and what it is told; after the `last` step also that it must answer now."""
    content = f"{STOP} {observation}" + (f"\n{LAST_STEP}" if last else "")
    return [{"role": "assistant", "content": text}, {"role": "user", "content": content}]


def _shortened(text: str) -> str:
    if len(text) <= _MAX_OBSERVATION:
        return text
    end = f" ... ({len(text)} characters, cut)"
    return text[: _MAX_OBSERVATION - len(end)] + end


class Reply(NamedTuple):
    """What the model wrote: an answer, an action, or neither."""

    text: str
    """Up to the end of the action: what a model makes up after it is dropped."""
    thought: str
    action: str = ""
    argument: str = ""
    answer: str | None = None
    marked: bool = True


def parse_reply(text: str, *, finished: bool = True, last: bool = False) -> Reply:
    """Read what a model wrote; the first marker counts.

    Without any marker a text is an answer when the model was `finished` with it. With `last`, everything is one.
    """
    text = text.strip()
    if match := _OBSERVATION.search(text):  # made up; the stop string ends it in this spelling only
        text = text[: match.start()].rstrip()
    final = _FINAL.search(text)
    if final and not (answer := _before_next(text[final.end() :])):
        final = None
    call = None if last else _find_call(text)
    if final and (call is None or final.start() < call.start):
        return Reply(text, _thought(text[: final.start()]), answer=answer)
    if call:
        return Reply(text[: call.end], _thought(text[: call.start]), call.name, call.argument)
    thought = _thought(text)
    if last or (text and finished and not _MARKED.search(text)):
        return Reply(text, "", answer=_before_next(_FINAL.sub("", thought)), marked=False)
    return Reply(text, thought)


def _before_next(text: str) -> str:
    match = _NEXT.search(text)
    return (text[: match.start()] if match else text).strip()


def _thought(text: str) -> str:
    return _THOUGHT.sub("", text, count=1).strip(" \n*_")


class _Call(NamedTuple):
    start: int
    end: int
    name: str
    argument: str


def _find_call(text: str) -> _Call | None:
    """The first action, if its bracket closes."""
    match = _ACTION.search(text)
    if match is None or (end := _closing(text, match.end() - 1)) is None:
        return None
    return _Call(match.start(), end + 1, match[1], text[match.end() : end].strip())


def _closing(text: str, start: int) -> int | None:
    """Where the bracket that opens at `start` closes; a JSON object inside may hold brackets in its strings."""
    opening = text[start]
    closing = {"[": "]", "(": ")"}[opening]
    content = re.compile(r"\s*").match(text, start + 1)
    if content and text.startswith("{", content.end()):
        try:
            end = json.JSONDecoder().raw_decode(text, content.end())[1]
        except (ValueError, RecursionError):
            pass
        else:
            end += len(text[end:]) - len(text[end:].lstrip())
            return end if text.startswith(closing, end) else None
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == opening) - (text[at] == closing)
        if depth == 0:
            return at
    return None
