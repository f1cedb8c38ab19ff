"""Group relative policy optimization (GRPO, Shao et al. 2024, arXiv:2402.03300), by trl.

The student writes several samples of each problem; those with a higher reward than the others of their group are made
likelier, the rest less likely. Samples, advantages and loss are trl's, with its defaults; prompts, rewards and what
surrounds a run are ours. A problem whose samples are all worth the same teaches nothing.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import parametrize
from transformers import GenerationConfig

from edge_distill.distil.own_samples import Prompts, open_reward_model, reward_of, reward_parts
from edge_distill.distil.trainer import GuardedTrainer
from edge_distill.traces.checking import check
from edge_distill.traces.elicitation import candidate_of
from edge_distill.traces.teachers.hf import TokenReader
from edge_distill.traces.teachers.teacher import Request
from edge_distill.traces.trace import Trace
from edge_distill_bench.problem import Problem
from edge_distill_runtime.errors import InputError, MissingExtra

try:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import RepeatSampler, add_fused_lm_head
except ModuleNotFoundError as exc:
    raise MissingExtra(
        "missing-trl", "grpo takes trl, which is not installed", 'pip install "edge-distill[rl]"'
    ) from exc

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, TrainingArguments

    from edge_distill.distil.material import Material
    from edge_distill.distil.recipe import GrpoSection
    from edge_distill_export.artifact import Source

__all__ = ["PolicyTrainer", "arguments_for", "make_policy_trainer"]


def arguments_for(section: GrpoSection, batch_size: int) -> Callable[..., TrainingArguments]:
    """`TrainingArguments` with what a recipe says of its samples."""
    return partial(
        GRPOConfig,
        num_generations=section.group,
        num_generations_eval=1,
        generation_batch_size=batch_size,  # samples are drawn anew for every step
        temperature=section.temperature,
        max_completion_length=section.max_tokens,
    )


def make_policy_trainer(
    section: GrpoSection, model: Any, source: Source, material: Material, arguments: TrainingArguments
) -> PolicyTrainer:
    """The trainer of a recipe with `grpo`; raises `InputError` for a student that cannot end a text."""
    rows, held_out = material.rows, material.validation
    assert isinstance(rows, Prompts)
    assert isinstance(held_out, Prompts)
    if not source.stop_ids:
        raise InputError(
            "no-end-token", "the student has no token that ends a text", "give its tokenizer an eos_token"
        )
    if arguments.n_gpu > 1:
        raise InputError(
            "many-gpus", f"one process sees {arguments.n_gpu} GPUs", "start it with `accelerate launch`"
        )
    tokenizer = source.checkpoint.tokenizer
    reader = TokenReader(tokenizer, source.style.markers, source.stop_ids)
    return PolicyTrainer(
        model, arguments, section=section, tokenizer=tokenizer, reader=reader, rows=rows, held_out=held_out
    )


class PolicyTrainer(GuardedTrainer, GRPOTrainer):
    """trl's trainer on `Prompts`; the logs hold its metrics, and the parts of the reward by their names."""

    learns_from = "problems"

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        *,
        section: GrpoSection,
        tokenizer: PreTrainedTokenizerFast,
        reader: TokenReader,
        rows: Prompts,
        held_out: Prompts,
    ) -> None:
        self._section, self._reader, self._scorer = section, reader, open_reward_model(section)
        self.parts = ("reward", "answer", "steps", *(["reward_model"] if self._scorer else []))
        self._step_ids: list[str] = []
        has_adapters = hasattr(model, "get_base_model")
        # trl would read it from the name in the configuration, where an adapter or a GGUF file is not
        reference = copy.deepcopy(model) if section.beta and not has_adapters else None
        self._plain = model.get_base_model() if has_adapters else model
        self._kept = copy.deepcopy((self._plain.config, self._plain.generation_config))
        tokenizer = _for_padding(tokenizer, reader.stop_ids)
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        self._plain.config.update(ids)
        # the checkpoint's own would add penalties and filters that no gradient knows of
        self._plain.generation_config = GenerationConfig(**{**ids, "eos_token_id": list(reader.stop_ids)})
        super().__init__(
            model=model,
            reward_funcs=[self._rewards],
            args=arguments,
            train_dataset=_as_dataset(rows),
            eval_dataset=_as_dataset(held_out),
            processing_class=tokenizer,
        )
        self.beta = section.beta
        if reference is not None:
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)

    def train(self, *arguments: Any, **settings: Any) -> Any:
        """Train; the student then has the configuration that it came with."""
        try:
            return super().train(*arguments, **settings)
        finally:
            self._plain.config, self._plain.generation_config = self._kept

    def step_ids(self) -> list[str]:
        return self._step_ids

    def compute_loss(self, *arguments: Any, **settings: Any) -> torch.Tensor:
        loss: torch.Tensor = super().compute_loss(*arguments, **settings)
        if not torch.isfinite(loss):
            raise self._failed("loss", self.step_ids())
        return loss

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No card for checkpoints: a student's lineage lies beside it."""

    def _send_telemetry(self) -> None:
        """Nobody is told that a student is trained."""

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        return _Order(
            self.train_dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.args.steps_per_generation,
            seed=self.args.seed,
        )

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}  # rendered and tokenized in the student's own form

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._step_ids = list(dict.fromkeys(row["id"] for row in inputs))
        try:
            # the weights stay as they are: they are rounded to the grid once
            with parametrize.cached(), warnings.catch_warnings():
                # trl 1.16 calls transformers 5.23 by old names
                warnings.filterwarnings(
                    "ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning
                )
                return super()._generate_and_score_completions(inputs)
        except RuntimeError as exc:
            if "probability tensor" not in str(exc):  # torch.multinomial's word for NaN and infinity
                raise
            raise self._failed("distribution", self._step_ids) from exc

    def _rewards(
        self,
        completion_ids: Sequence[Sequence[int]],
        inside: Sequence[bool],
        log_metric: Callable[[str, float], None],
        **columns: Any,
    ) -> list[float]:
        """What every sample is worth; `columns` are those of `_as_dataset`."""
        names = ("id", "task", "problem", "answer")
        problems = [Problem(*values) for values in zip(*(columns[name] for name in names), strict=True)]
        samples = zip(problems, completion_ids, inside, strict=True)
        parts = reward_parts([self._trace(*sample) for sample in samples], self._scorer)
        for name, values in parts.items():
            log_metric(name, sum(values) / len(values))
        return reward_of(parts, self._section.rewards)

    def _trace(self, problem: Problem, tokens: Sequence[int], inside: bool) -> Trace:
        request = Request(({"role": "user", "content": problem.problem},), seed=0)
        written = self._reader.read(tokens, inside=inside)
        return check(candidate_of(request, written, problem, {}), problem, "student")


class _Order(RepeatSampler):
    """trl's order of problems, but one that depends on seed and epoch alone: a run that was killed goes on in it."""

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


def _as_dataset(prompts: Prompts) -> Dataset:
    rows = zip(prompts.problems, prompts.tokens, prompts.inside, strict=True)
    return Dataset.from_list(
        [
            {"prompt": list(tokens), "inside": inside, "id": one.id, "task": one.task}
            | {"problem": one.problem, "answer": one.answer}
            for one, tokens, inside in rows
        ]
    )


def _for_padding(tokenizer: PreTrainedTokenizerFast, stop_ids: Sequence[int]) -> PreTrainedTokenizerFast:
    """A copy in which trl finds the end and the padding; the student's own stays as it is."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(stop_ids[0])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer
