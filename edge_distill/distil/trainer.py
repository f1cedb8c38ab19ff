"""The training engine: transformers' Trainer with our loss, order of batches, metrics and reasons to stop."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from edge_distill.distil.dataset import Dataset, batches_of_epoch
from edge_distill.distil.losses import DistillationLoss, LossParts, TopK, distillation_loss, span_counts
from edge_distill.distil.snapshots import mark_complete
from edge_distill.distil.spans import StepWeights, collate
from edge_distill_runtime.errors import EdgeDistillError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

    from edge_distill.distil.teacher import LogitsTeacher
    from edge_distill_export.progress import Advance

__all__ = ["DistillationTrainer", "TrainingFailed"]


class TrainingFailed(EdgeDistillError):
    """The loss or a gradient is not finite."""


class DistillationTrainer(Trainer):
    """Trains a student on examples with the distillation loss.

    The normalizer of the loss is that of the whole optimizer step: with the same batch size, gradient accumulation
    and data parallelism give the loss and gradient of one large batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        *,
        loss: DistillationLoss,
        dataset: Dataset,
        validation: Dataset | None,
        pad_id: int,
        weights: StepWeights,
        teacher: LogitsTeacher | None = None,
        batch_size: int,
        metrics: Path,
        advance: Advance,
    ) -> None:
        self.span_loss, self.pad_id, self.weights, self.teacher = loss, pad_id, weights, teacher
        self.batch_size = batch_size
        super().__init__(
            model,
            arguments,
            train_dataset=dataset,
            eval_dataset=validation,
            data_collator=self._collate,
        )
        self.loss_is_scaled_for_ga = True  # by the counts of the whole step
        self._parts = torch.zeros(3, device=self.args.device)  # reasoning, answer, tokens since the last log
        self._logged_step: int | None = None
        self._last_rows: list[int] = []  # of the current optimizer step
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(_Recorder(metrics, advance))

    # -- batches -----------------------------------------------------------------------------------------

    def _collate(self, rows: list[int], dataset: Dataset | None = None) -> dict[str, torch.Tensor]:
        examples = [(dataset or self.train_dataset).examples[row] for row in rows]
        batch = collate(examples, self.pad_id, self.weights)
        return {**batch, "rows": torch.tensor(rows)}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        lengths = [len(example.tokens) for example in self.train_dataset.examples]
        return _Order(lengths, self.batch_size, self.args.seed)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """float32 [2]: the spans of the whole optimizer step, over micro-batches and processes."""
        self._last_rows = [row for batch in batch_samples for row in batch["rows"].tolist()]
        counts = torch.stack([span_counts(batch["kinds"]) for batch in batch_samples]).sum(0).to(device)
        return self._summed(counts)

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(values, "sum") if self.args.world_size > 1 else values

    # -- the loss ----------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """The loss of one micro-batch, so scaled that the processes' mean is the step's loss."""
        parts = self._forward(model, inputs, num_items_in_batch, self.train_dataset)
        if not torch.isfinite(parts.total):
            raise self._failed("loss", inputs["rows"].tolist())
        if self._logged_step is None:  # a resumed run does not begin at 0
            self._logged_step = self.state.global_step
        tokens = (inputs["labels"][:, 1:] >= 0).sum()
        self._parts += torch.stack([parts.reasoning, parts.answer, tokens.to(parts.answer)])
        return parts.total * self.args.world_size

    def _forward(
        self, model: Any, inputs: dict[str, torch.Tensor], counts: torch.Tensor | None, dataset: Any
    ) -> LossParts:
        names = ("input_ids", "attention_mask", "position_ids")
        texts = {name: inputs[name] for name in names}
        tokens, kinds, weights = inputs["input_ids"], inputs["kinds"], inputs["weights"]
        # the prompts that all texts begin with need no logits
        start = int((inputs["labels"] >= 0).any(0).int().argmax()) - 1
        kept = tokens.shape[1] - start
        with self.compute_loss_context_manager():
            logits = model(**texts, use_cache=False, logits_to_keep=kept).logits
            teacher: torch.Tensor | TopK | None = None
            if self.teacher is not None:
                examples = [dataset.examples[row] for row in inputs["rows"].tolist()]
                teacher = self.teacher.distributions(texts, examples, kept)
        return distillation_loss(
            self.span_loss,
            logits,
            tokens[:, start:],
            kinds[:, start:],
            weights=weights[:, start:],
            teacher=teacher,
            counts=counts,
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise self._failed("gradient", self._last_rows)
        return norm

    def _failed(self, what: str, rows: list[int]) -> TrainingFailed:
        ids = [self.train_dataset.ids[row] for row in rows]
        return TrainingFailed(
            "not-finite",
            f"the {what} of step {self.state.global_step + 1} is not finite; its traces: {', '.join(ids)[:2000]}",
            "look at these traces, or lower training.learning_rate",
            {"step": self.state.global_step + 1, "traces": ids},
        )

    # -- validation and logs -----------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The loss on the validation traces, each process computing a part of them."""
        dataset: Any = self.eval_dataset
        rows = range(self.args.process_index, len(dataset), self.args.world_size)
        lengths = {row: len(dataset.examples[row].tokens) for row in rows}
        order = sorted(rows, key=lengths.__getitem__)
        size = self.args.per_device_eval_batch_size
        sums = torch.zeros(4, device=self.args.device)
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            for start in range(0, len(order), size):
                inputs = self._prepare_inputs(self._collate(order[start : start + size], dataset))
                one = torch.ones(2, device=self.args.device)
                parts = self._forward(self.model, inputs, one, dataset)
                sums += torch.cat(
                    [torch.stack([parts.reasoning, parts.answer]), span_counts(inputs["kinds"])]
                )
        self.model.train(was_training)
        reasoning, answer, with_reasoning, with_answer = self._summed(sums).tolist()
        reasoning, answer = reasoning / max(1, with_reasoning), answer / max(1, with_answer)
        total = self.span_loss.alpha * reasoning + self.span_loss.beta * answer
        metrics = {"eval_loss": total, "eval_reasoning": reasoning, "eval_answer": answer}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the two parts of the loss, and the tokens that it was computed on."""
        if "loss" in logs:
            reasoning, answer, tokens = self._summed(self._parts).tolist()
            steps = max(1, self.state.global_step - (self._logged_step or 0))
            logs |= {"reasoning": reasoning / steps, "answer": answer / steps, "tokens": tokens}
            self._parts.zero_()
            self._logged_step = self.state.global_step
        super().log(logs, start_time)


class _Order(Sampler[int]):
    """The rows of an epoch, batch after batch."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        for batch in batches_of_epoch(self._lengths, self._batch_size, self._seed, self._epoch):
            yield from batch

    def __len__(self) -> int:
        return len(self._lengths) // self._batch_size * self._batch_size


class _Recorder(TrainerCallback):
    """metrics.jsonl and the progress; what a killed run wrote beyond its last checkpoint is cut."""

    def __init__(self, path: Path, advance: Advance) -> None:
        self._path, self._advance = path, advance
        self._started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._started = time.monotonic()
        if state.is_world_process_zero:
            self._advance(state.global_step)
            lines = self._path.read_text("utf-8").splitlines() if self._path.exists() else []
            kept = [line for line in lines if _step_of(line) <= state.global_step and state.global_step]
            self._path.write_text("".join(line + "\n" for line in kept), "utf-8")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            self._advance()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            seconds = round(time.monotonic() - self._started, 1)
            entry = {"step": state.global_step, **logs, "seconds": seconds}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # every process has written its random state
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # torn by a kill
        return 1 << 62
