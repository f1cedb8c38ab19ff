"""How the demo's teacher was made: `python -m edge_distill.demo.make_teacher [FOLDER]`, some 15 minutes on one core.

A tokenizer of 512 tokens, a Llama of random weights, traces by a solver, training by `teacher.yaml`, then
twice by `teacher_again.yaml`; then the weights in bfloat16 are the folder `teacher` beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill.demo.files import TASK, TEACHER, recipe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["make_random", "make_teacher", "make_tokenizer"]

VALIDATION = 200
_STAGES = (("teacher", 8_000), ("teacher_again", 16_000), ("teacher_again", 16_000))  # recipes and problems
HIDDEN, LAYERS, FFN, HEAD = 96, 4, 256, 32
VOCABULARY, CONTEXT = 512, 1024
_SAMPLE, _SAMPLE_TASK = 300, "task:chain_sum?max_digits=2&max_terms=4"  # what the tokenizer sees of sums
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MARKERS = ("<think>", "</think>")


def make_teacher(work: Path, out: Path) -> None:
    """Write the teacher's checkpoint to `out`; traces, run and metrics stay in `work`."""
    from edge_distill.distil.distill import train
    from edge_distill.traces.writing import traces

    validation = work / "validation.jsonl"
    traces([TASK], teacher="solver:", out=validation, count=VALIDATION, split="validation")
    make_random(work / "random")
    student = work / "random"
    for number, (name, problems) in enumerate(_STAGES):
        written, run = work / f"traces-{problems}.jsonl", work / f"run-{number}"
        traces([TASK], teacher="solver:", out=written, count=problems)
        train(recipe(name, student=str(student), out=run, traces=[written], validation=[validation]))
        student = run / "student"
    _store(student, out)


def make_random(out: Path) -> None:
    """A model of random weights with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from edge_distill.distil.chat_form import set_thinking_form

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(),
        bos_token=_SPECIAL[0],
        eos_token=_SPECIAL[2],
        pad_token=_SPECIAL[0],
        clean_up_tokenization_spaces=False,
    )
    set_thinking_form(tokenizer)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // HEAD,
        num_key_value_heads=HIDDEN // HEAD,
        head_dim=HEAD,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        initializer_range=0.06,  # 0.02 is for wide models: with it attention takes long to find anything
        rope_theta=10_000.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE with SmolLM2's pre-tokenizer, which llama.cpp knows: every digit is a token of its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(_MARKERS),
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in _MARKERS])
    return tokenizer


def _corpus() -> Iterable[str]:
    """Problems of the task with their solutions, and the English problems that an export is verified on."""
    from edge_distill.traces.solvers import solve
    from edge_distill_bench.tasks import load_problems
    from edge_distill_export.calibration import builtin_traces

    for problem in load_problems(_SAMPLE_TASK, split="train", count=_SAMPLE):
        yield "user assistant\n"
        yield f"{problem.problem}\n"
        yield f"{solve(problem.task, problem.problem, {}).reasoning}\n\n\\boxed{{{problem.answer}}}\n"
    for trace in builtin_traces("calibration"):
        yield f"{trace.messages[-1]['content']}\n"
        yield f"{trace.reasoning}\n{trace.answer}\n"


def _store(trained: Path, out: Path) -> None:
    """The checkpoint in bfloat16, which halves it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.bfloat16)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(trained).save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the demo's teacher again.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("teacher-run"), help="for traces and runs"
    )
    make_teacher(parser.parse_args().folder, TEACHER)
