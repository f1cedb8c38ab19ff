"""Tokenizers as GGUF metadata: libllama must give the Hugging Face tokenizer's ids on hostile strings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from edge_distill_export.gguf_vocab import (
    Vocabulary,
    choose_vocabulary,
    compare_tokenizers,
    read_vocabulary,
    tokenizer_from_gguf,
    write_vocabulary,
)
from edge_distill_export.gguf_writer import write_gguf
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.text.hostile_strings import HOSTILE_STRINGS
from tests.export.gguf_files import metadata, wrap
from tests.random_models import random_checkpoint, variant_named
from tests.random_tokenizers import BYTE_LEVEL_TOKENIZERS, SPM_TOKENIZERS, random_tokenizer

ROWS = 512


def choose(tokenizer: PreTrainedTokenizerFast, rows: int = ROWS, name: str = "student") -> Vocabulary:
    return choose_vocabulary(tokenizer, rows, name, "llama")


def edited(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> PreTrainedTokenizerFast:
    """The tokenizer with parts of its tokenizer.json replaced."""
    document = {**json.loads(tokenizer.backend_tokenizer.to_str()), **changes}
    return wrapped(Tokenizer.from_str(json.dumps(document)), tokenizer)


def wrapped(backend: Tokenizer, like: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **like.special_tokens_map
    )


@pytest.mark.parametrize(
    ("kind", "pre"),
    [("smollm", "smollm"), ("gpt2", "gpt-2"), ("llama3", "llama-bpe"), ("qwen2", "qwen2")],
)
def test_the_pre_tokenizer_is_found(kind: str, pre: str) -> None:
    vocabulary = choose(random_tokenizer(kind))
    assert (vocabulary.model, vocabulary.pre, vocabulary.add_bos) == ("gpt2", pre, kind == "llama3")


@pytest.mark.parametrize(("kind", "prefix"), [("llama2", True), ("gemma", False)])
def test_byte_fallback_tokenizers_become_sentencepiece_ones(kind: str, prefix: bool) -> None:
    vocabulary = choose(random_tokenizer(kind))
    assert (vocabulary.model, vocabulary.add_space_prefix, vocabulary.add_bos) == ("llama", prefix, True)


def test_a_wrong_pre_tokenizer_is_noticed(tmp_path: Path) -> None:
    tokenizer = random_tokenizer("gpt2")
    wrong = replace(choose(tokenizer), pre="smollm")  # which splits digits
    write_vocabulary(wrong, tmp_path / "wrong.gguf", "llama")
    mismatches = compare_tokenizers(tokenizer, tmp_path / "wrong.gguf")
    assert mismatches
    assert all(any(letter.isdigit() for letter in mismatch.text) for mismatch in mismatches)
    assert all(len(mismatch.expected) < len(mismatch.found) for mismatch in mismatches)


def test_hostile_strings_are_many_and_distinct() -> None:
    assert len(set(HOSTILE_STRINGS)) == len(HOSTILE_STRINGS) > 60
    for needle in ("🙂", "e\u0301", "1234567890", "def f(", "   ", "\u202e", "<|im_start|>", "don't", "你好"):
        assert any(needle in text for text in HOSTILE_STRINGS), needle


def test_token_types_and_padding() -> None:
    tokenizer = random_tokenizer("smollm")
    vocabulary = choose(tokenizer)
    types = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert len(tokenizer) == 506
    assert types["<|im_start|>"] == types["<|endoftext|>"] == TokenType.CONTROL
    assert types["<think>"] == TokenType.USER_DEFINED
    assert types["Ġapples"] == TokenType.NORMAL
    assert vocabulary.tokens[506:] == [f"[PAD{index}]" for index in range(506, 512)]
    assert set(vocabulary.types[506:]) == {TokenType.UNUSED}
    assert vocabulary.special_ids == {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.convert_tokens_to_ids("<|im_end|>"),
    }

    spm = choose(random_tokenizer("llama2"))
    types = dict(zip(spm.tokens, spm.types, strict=True))
    assert types["<unk>"] == TokenType.UNKNOWN
    assert types["<s>"] == TokenType.CONTROL
    assert types["<0x0A>"] == TokenType.BYTE
    # Merged earlier is better: "▁a" comes before "▁apples".
    assert spm.scores[spm.tokens.index("▁a")] > spm.scores[spm.tokens.index("▁apples")]


def test_a_vocabulary_larger_than_the_embedding_is_refused() -> None:
    with pytest.raises(InputError, match="token id 505, but the embedding has only 500 rows") as caught:
        choose(random_tokenizer("smollm"), rows=500)
    assert caught.value.code == "vocabulary-too-large"


def test_tokens_added_for_a_resized_embedding() -> None:
    tokenizer = random_tokenizer("qwen2")
    tokenizer.add_tokens(["<answer>", "step by step"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    vocabulary = choose(tokenizer)
    assert vocabulary.tokens[506:510] == ["<answer>", "step by step", "<|tool|>", "[PAD509]"]


def test_a_split_that_llama_cpp_does_not_know_is_refused_with_the_string() -> None:
    steps = [pre_tokenizers.Split("a", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer = random_tokenizer("gpt2")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    with pytest.raises(InputError, match=r"no pre-tokenizer of llama\.cpp .* becomes") as caught:
        choose(tokenizer)
    assert caught.value.code == "tokenizer-mismatch"
    assert "onnx" in caught.value.hint


def test_kinds_that_gguf_does_not_hold_are_refused() -> None:
    unigram = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", -1.0)], None)))
    with pytest.raises(InputError, match="a Unigram tokenizer"):
        read_vocabulary(unigram, ROWS, "student")
    spm = random_tokenizer("llama2")
    document = json.loads(spm.backend_tokenizer.to_str())["model"]
    document["vocab"]["replaced"] = document["vocab"].pop("<0x41>")
    with pytest.raises(InputError, match="no token <0x41>"):
        read_vocabulary(edited(spm, model=document), ROWS, "student")


def test_two_tokens_around_a_text_are_refused() -> None:
    tokenizer = random_tokenizer("llama3")
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} {bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    with pytest.raises(InputError, match="before and"):
        choose(tokenizer)


def test_an_end_token_that_the_tokenizer_adds() -> None:
    tokenizer = random_tokenizer("llama3")
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    ids = [(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=ids
    )
    vocabulary = choose(tokenizer)
    assert (vocabulary.add_bos, vocabulary.add_eos) == (True, True)


def test_a_plain_token_that_llama_cpp_takes_for_special(tmp_path: Path) -> None:
    # As in Qwen2's vocabulary: libllama makes an end token of it, and finds it in any text.
    tokenizer = random_tokenizer("qwen2")
    document = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    document["vocab"]["</s>"] = 506
    tokenizer = edited(tokenizer, model=document)
    assert len(tokenizer.encode("</s>")) > 1
    assert any("</s>" in text for text in HOSTILE_STRINGS)
    assert choose(tokenizer).pre == "qwen2"


def test_a_space_before_the_first_word_only() -> None:
    # Mistral v0.3 and other recent sentencepiece conversions.
    tokenizer = random_tokenizer("llama2")
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    tokenizer = edited(tokenizer, normalizer=None, pre_tokenizer=metaspace)
    assert tokenizer.tokenize("</s> a</s>a") == ["</s>", "▁a", "</s>", "a"]
    assert choose(tokenizer).add_space_prefix is False


def phi3_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = random_tokenizer("llama2")
    backend = tokenizer.backend_tokenizer
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    for token in ("</s>", "<|im_start|>", "<|im_end|>", "<|end|>"):
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False, rstrip=True)])
    return wrapped(backend, tokenizer)


def test_tokens_that_swallow_space_get_the_name_that_libllama_looks_for() -> None:
    assert choose(phi3_tokenizer(), name="my student").model_name == "my student (phi-3 tokens)"
    assert choose(phi3_tokenizer(), name="Phi-3-mini").model_name == "Phi-3-mini"
    assert choose(random_tokenizer("gpt2"), name="Phi-3-mini-gpt2").model_name == "phi 3-mini-gpt2"


def test_duplicate_tokens_never_reach_libllama() -> None:
    tokenizer = random_tokenizer("smollm")
    tokenizer.add_tokens(["[PAD507]"])  # takes the id 506
    with pytest.raises(InputError, match=r"'\[PAD507\]' stands twice"):
        choose(tokenizer)


@pytest.mark.parametrize("kind", [*BYTE_LEVEL_TOKENIZERS, *SPM_TOKENIZERS, "phi3"])
def test_the_tokenizer_comes_back_from_the_file(kind: str, tmp_path: Path) -> None:
    tokenizer = phi3_tokenizer() if kind == "phi3" else random_tokenizer(kind)
    path = tmp_path / "vocabulary.gguf"
    write_vocabulary(choose(tokenizer), path, "llama")
    again = tokenizer_from_gguf(path)
    normalize = tokenizer.backend_tokenizer.normalizer.normalize_str if kind == "qwen2" else str
    for text in map(normalize, HOSTILE_STRINGS):
        assert again.encode(text) == tokenizer.encode(text)
    assert again.eos_token_id == tokenizer.eos_token_id
    assert again.chat_template == tokenizer.chat_template


def test_a_file_with_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    write_vocabulary(replace(choose(random_tokenizer("gpt2")), pre="viking"), path, "llama")
    with pytest.raises(InputError, match="'viking'"):
        tokenizer_from_gguf(path)


def test_the_chat_template_is_in_the_file(tmp_path: Path) -> None:
    model, tokenizer = random_checkpoint(variant_named("qwen2-tied-gqa"))
    write_gguf(wrap(model, tokenizer), tmp_path / "model.gguf", float_type="f16")
    assert metadata(tmp_path / "model.gguf")["tokenizer.chat_template"] == tokenizer.chat_template


@pytest.mark.real_model
def test_smollm2s_tokenizer(real_gguf: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_from_gguf(real_gguf)
    vocabulary = choose(tokenizer, rows=49152)
    assert vocabulary.pre == "smollm"
    write_vocabulary(vocabulary, tmp_path / "vocabulary.gguf", "llama")
    theirs, ours = metadata(real_gguf), metadata(tmp_path / "vocabulary.gguf")
    for key in ("tokens", "token_type", "merges", "pre", "add_bos_token", "bos_token_id", "eos_token_id"):
        assert ours[f"tokenizer.ggml.{key}"] == theirs[f"tokenizer.ggml.{key}"], key
