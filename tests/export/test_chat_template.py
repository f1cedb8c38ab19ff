"""Chat templates taken apart: the real families' forms, byte for byte, and forms that cannot be stored."""

from __future__ import annotations

import pytest

from edge_distill_export.chat_template import PROBES, chat_segments, check_chat, reasoning_markers
from edge_distill_runtime.errors import BundleError, InputError
from edge_distill_runtime.text.chat import render
from tests.random_tokenizers import random_tokenizer

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
    "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') }}"
    "{{ m.content | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}{{ raise_exception('role') }}"
    "{% endif %}{% endfor %}"
)
QWEN3 = (  # an empty reasoning stands in a last assistant turn only
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI3 = (  # eos_token closes a conversation that does not go on
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
R1 = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
# What transformers adds to Jinja: filters, functions, tags, and how blocks are trimmed.
FEATURES = """
{%- set ns = namespace(first=true) %}
{%- set names = dict(user='human') %}
{{- {'é': ['<b>', 1]} | tojson(indent=2) }}
{{- strftime_now('%Y') ~ (tools is none) ~ (documents is none) ~ nothing ~ eos_token }}
{% for m in messages %}
    {% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}
    {% if loop.index > 99 %}{% break %}{% endif %}
    {% generation %}
<|{{ names[m.role] or m.role }}|>{{ m.content }}
    {% endgeneration %}
<|done|>
    {% set ns.first = false %}
{% endfor %}
{% if add_generation_prompt and not ns.first %}<|assistant|>{% endif %}
"""


@pytest.mark.parametrize(
    "template",
    [CHATML, GEMMA, MISTRAL, QWEN3, PHI3, R1, FEATURES],
    ids=["chatml", "gemma", "mistral", "qwen3", "phi3", "r1", "features"],
)
def test_prompts_are_the_templates_own(template: str) -> None:
    tokenizer = random_tokenizer("qwen2")
    tokenizer.chat_template = template
    tokenizer.bos_token = "<|endoftext|>"
    segments = chat_segments(tokenizer)
    assert segments is not None
    for messages in PROBES:
        if segments.system is None and messages[0]["role"] == "system":
            continue
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert render(segments, messages) == expected
    assert check_chat(tokenizer, segments) == (len(PROBES) if segments.system else 2)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}",
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.role }} {{ m.content | upper }}\n{% endfor %}",
        "{{ messages[-1].content }}",
        "constant",
    ],
)
def test_templates_that_are_more_than_segments_are_refused(template: str) -> None:
    tokenizer = random_tokenizer("qwen2")
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="cannot be stored as segments"):
        chat_segments(tokenizer)


def test_hostile_template_does_not_stop_the_export() -> None:
    tokenizer = random_tokenizer("qwen2")
    tokenizer.chat_template = CHATML + "{{ 'a' * 10**10 }}"
    with pytest.raises(BundleError, match="needs more than 256 MiB"):
        chat_segments(tokenizer)


def test_named_templates() -> None:
    tokenizer = random_tokenizer("qwen2")
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ 1 / 0 }}"}
    named = chat_segments(tokenizer)
    tokenizer.chat_template = CHATML
    assert named == chat_segments(tokenizer) is not None


def test_no_template_is_no_chat() -> None:
    tokenizer = random_tokenizer("qwen2")
    tokenizer.chat_template = None
    assert chat_segments(tokenizer) is None


def test_reasoning_markers_come_from_template_or_vocabulary() -> None:
    tokenizer = random_tokenizer("llama2")
    tokenizer.chat_template = CHATML
    assert reasoning_markers(tokenizer) is None
    assert reasoning_markers(random_tokenizer("qwen2")) is not None  # has the two tokens
    tokenizer.chat_template = QWEN3
    markers = reasoning_markers(tokenizer)
    assert markers is not None
    assert (markers.open, markers.close) == ("<think>", "</think>")
