"""Chat templates that nobody vouches for: segments, or a typed error in bounded time and memory."""

from __future__ import annotations

import resource
import time

import pytest

from edge_distill_runtime.errors import BundleError, InputError
from edge_distill_runtime.text import chat_template
from edge_distill_runtime.text.chat import ChatSegments, ReasoningMarkers, render
from edge_distill_runtime.text.chat_template import check_segments, derive_segments, find_markers

CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SEGMENTS = ChatSegments(
    prefix="<s>",
    default_system="",
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
    generation_prompt="<|im_start|>assistant\n",
    strips_content=False,
)
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_segments_by_hand() -> None:
    assert derive_segments(CHATML, {"bos_token": "<s>"}, "tiny") == SEGMENTS
    assert check_segments(SEGMENTS, CHATML, {"bos_token": "<s>"}, "tiny") == 4
    assert render(SEGMENTS, [{"role": "user", "content": "x"}]) == (
        "<s><|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(InputError, match="at character 1 it gives 't><"):
        check_segments(SEGMENTS, CHATML, {"bos_token": "<t>"}, "tiny")


def test_hanging_template_ends_after_five_seconds() -> None:
    before = time.perf_counter()
    with pytest.raises(BundleError, match="chat template of tiny took more than 5 seconds") as caught:
        derive_segments(CHATML + LOOPS, {}, "tiny")
    assert caught.value.code == "hostile-template"
    assert time.perf_counter() - before < 6


@pytest.mark.parametrize(
    "template",
    [
        "{{ 10 ** (10 ** 9) }}",  # folded while compiling, in one long call of C
        "{% for a in messages * 9999999 %}{% for b in messages * 9999999 %}{% endfor %}{% endfor %}",
    ],
)
def test_other_hanging_templates(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_SECONDS", 1.5)
    with pytest.raises(BundleError, match=r"took more than|needs more than"):
        derive_segments(template, {}, "tiny")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**9 }}",
        "{{ messages[0].content * 10**9 }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ '%01000000000d' % 1 }}",
        "{{ ['a'] | join * 10**9 }}",
    ],
)
def test_greedy_templates(template: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match="needs more than 256 MiB"):
        derive_segments(template, {}, "tiny")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses a conversation"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError|Undefined"),
        ("{{ namespace(__class__=1) }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ raise_exception('no') }}", "TemplateError: no"),
        ("{% include '/etc/hostname' %}", "no loader"),
        ("{% endfor %}", "is no Jinja template"),
        ("{% for m in messages %}", "is no Jinja template"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "is no Jinja template"),
        ("{{ messages[0].content }}{{ 'a' * 2000000 }}", "makes 20000.. characters, the limit is 1048576"),
        ("constant", "it changes contents"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_templates_that_fail(template: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        derive_segments(template, {}, "tiny")
    assert caught.value.code == "chat-template"


def test_template_of_megabytes() -> None:
    with pytest.raises(BundleError, match="has 2000000 characters, the limit is 1048576"):
        derive_segments("a" * 2_000_000, {}, "tiny")


def test_markers() -> None:
    think = ReasoningMarkers("<think>", "</think>")
    assert find_markers("{{ '</think>' }}", []) == think
    assert find_markers("", ["<think>", "</think>"]) == think
    assert find_markers("", ["<think>"]) is None
    assert find_markers("", ["</reasoning>", "<reasoning>"]) == ReasoningMarkers(
        "<reasoning>", "</reasoning>"
    )
