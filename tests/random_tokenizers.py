"""Tiny tokenizers, trained in process, with the structure of real ones."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

# A little below the models' vocabulary of 512: most real embeddings are padded too.
MAX_TOKENS = 504

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Llama-3's and Qwen2's split differ in how many digits make one piece.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

BYTE_LEVEL_TOKENIZERS = ("smollm", "qwen2", "llama3", "gpt2")
SPM_TOKENIZERS = ("llama2", "gemma")


def _corpus() -> list[str]:
    words = [
        "apples",
        "trains",
        "books",
        "stones",
        "children",
        "rivers",
        "kilometres",
        "hours",
        "friends",
        "coins",
    ]
    people = ["Anna", "Ben", "Chloé", "Dmitri", "Eve", "Farid", "Grace", "Hiroshi", "Ines", "João"]
    sentences = [
        f"{people[i % 10]} has {i * 7 % 113} {words[i % 10]} and gives {i * 3 % 17} of them "
        f"to {people[(i + 3) % 10]}. How many {words[i % 10]} are left? "
        f"{i * 7 % 113} - {i * 3 % 17} = {i * 7 % 113 - i * 3 % 17}.\n"
        for i in range(120)
    ]
    return [
        *sentences,
        "First, we add the numbers. Then we don't need to divide; it's the answer they've found, isn't it?\n",
        "def area(width, height):\n    return width * height  # in square metres\n\n\nprint(area(3, 4))\n",
        "The quick brown fox jumps over the lazy dog, while THE QUICK BROWN FOX WATCHES?!\n",
        '("Yes") [a] {b} <c> $5 #6\n',
        "größer façade naïve über señor Привет мир 你好 世界 こんにちは שלום مرحبا ½ € → ∑ 🙂\n",
    ]


@cache
def _trained(kind: str) -> str:
    tokenizer = _byte_level(kind) if kind in BYTE_LEVEL_TOKENIZERS else _spm(kind)
    return tokenizer.to_str()


def random_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tiny tokenizer (at most MAX_TOKENS + 2 tokens) with the structure of a real one's tokenizer.json.

    `kind` is one of BYTE_LEVEL_TOKENIZERS or SPM_TOKENIZERS.
    """
    names = {
        "llama2": ("<s>", "</s>", "<unk>"),
        "gemma": ("<bos>", "<eos>", "<unk>"),
        "llama3": ("<|begin_of_text|>", "<|im_end|>", None),
        "qwen2": (None, "<|im_end|>", None),
    }
    bos, eos, unknown = names.get(kind, ("<|endoftext|>", "<|im_end|>", None))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(kind)),
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


_CHAT_TOKENS = ["<|im_start|>", "<|im_end|>"]


def _byte_level(kind: str) -> Tokenizer:
    """Byte-level BPE with the pre-tokenizer of SmolLM2, Qwen2, Llama 3 or GPT-2."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("smollm", "gpt2"))
    before: dict[str, list[Any]] = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "gpt2": [],
        "llama3": [pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated")],
        "qwen2": [pre_tokenizers.Split(Regex(_QWEN2_SPLIT), "isolated")],
    }
    tokenizer = Tokenizer(models.BPE())
    steps = [*before[kind], byte_level]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if before[kind] else byte_level
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    first = "<|begin_of_text|>" if kind == "llama3" else "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_TOKENS,
        special_tokens=[first, *_CHAT_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    # Reasoning markers are plain added tokens in real checkpoints: visible text, never split.
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer.add_tokens([AddedToken("</think>", special=False, normalized=False)])
    if kind == "llama3":
        tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=True), _with_bos(tokenizer, first)]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _spm(kind: str) -> Tokenizer:
    """BPE with byte fallback over "▁" for spaces, as converted from a sentencepiece model.

    Such a conversion lists every pair of tokens whose concatenation is a token, ordered by the token's rank.
    """
    bos, eos = ("<bos>", "<eos>") if kind == "gemma" else ("<s>", "</s>")
    special = ["<unk>", bos, eos, *_CHAT_TOKENS]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_TOKENS - len(special) - len(fallback), limit_alphabet=100, show_progress=False
    )
    learner.train_from_iterator(_corpus(), trainer)
    pieces = sorted(learner.get_vocab(), key=learner.get_vocab().__getitem__)
    vocabulary = {token: index for index, token in enumerate([*special, *fallback])}
    vocabulary |= {piece: len(vocabulary) + index for index, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True, ignore_merges=False
        )
    )
    if kind == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        strip = []
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        strip = [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = _with_bos(tokenizer, bos)
    return tokenizer


def _with_bos(tokenizer: Tokenizer, bos: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
