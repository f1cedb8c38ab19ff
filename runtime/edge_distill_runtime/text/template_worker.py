"""Renders a chat template; runs in a process of its own, as a template may loop for ever or ask for gigabytes.

The environment is transformers' (utils/chat_template_utils.py): the same sandbox, globals, filters and tags.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["answer"]

_MOST_CHARACTERS = 1 << 20


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """`{"texts": [...]}`: for each conversation `{"text"}` or `{"error"}`; `{"error"}` for a bad template."""
    try:
        template = _compile(request["template"])
    except (MemoryError, ImportError):
        raise
    except Exception as exc:
        return {"error": _reason(exc)}
    return {
        "texts": [
            _render(template, conversation, request["special_tokens"])
            for conversation in request["conversations"]
        ]
    }


def _render(
    template: Template, conversation: dict[str, Any], special_tokens: dict[str, Any]
) -> dict[str, str]:
    try:
        text = template.render(**special_tokens, tools=None, documents=None, **conversation)
    except MemoryError:
        raise
    except Exception as exc:  # a template may call anything the sandbox allows
        return {"error": _reason(exc)}
    if len(text) > _MOST_CHARACTERS:
        return {"error": f"it makes {len(text)} characters, the limit is {_MOST_CHARACTERS}"}
    return {"text": text}


def _reason(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}".splitlines()[0][:200]


def _compile(source: str) -> Template:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

        def parse(self, parser: jinja2.parser.Parser) -> CallBlock:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("_body"), [], [], body, lineno=line)

        def _body(self, caller: jinja2.runtime.Macro) -> str:
            return caller()

    class Dict:
        """`dict` without the type's own attributes."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args, **kwargs)

    class Namespace(jinja2.utils.Namespace):
        """`namespace` that takes no underscore attributes."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *rest = args
            values = dict(*rest, **kwargs)
            for name in values:
                _check_name(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    def _check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": Namespace,
    }
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
