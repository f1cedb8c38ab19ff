"""The training engine: transformers' Trainer with our order of batches, normalizers, metrics and reasons to stop."""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from edge_distill.distil.dataset import batches_of_epoch
from edge_distill.distil.snapshots import mark_complete
from edge_distill_runtime.errors import EdgeDistillError

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from edge_distill_export.progress import Advance

__all__ = ["GuardedTrainer", "Losses", "Recorder", "Rows", "StudentTrainer", "TrainingFailed"]


class TrainingFailed(EdgeDistillError):
    """The loss or a gradient is not finite."""


class Rows(Protocol):
    """What is learned, row by row."""

    @property
    def ids(self) -> Sequence[str]:
        """Names of the rows, for messages."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """In tokens."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> int: ...


@dataclass(frozen=True)
class Losses:
    """Of a micro-batch, normalized by the counts of the whole optimizer step: micro-batches add up."""

    total: torch.Tensor
    """To go back from."""
    parts: torch.Tensor
    """Detached, one for each of the trainer's `parts`."""
    tokens: torch.Tensor
    """How many tokens had a loss."""


class GuardedTrainer(Trainer):
    """Stops at the first step that is not finite, and prints nothing by itself."""

    parts: tuple[str, ...]
    """What is logged beside the loss."""
    learns_from = "traces"

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)

    @abstractmethod
    def step_ids(self) -> list[str]:
        """What the current optimizer step learns from, by name."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise self._failed("gradient", self.step_ids())
        return norm

    def _failed(self, what: str, ids: list[str]) -> TrainingFailed:
        step, kind = self.state.global_step + 1, self.learns_from
        return TrainingFailed(
            "not-finite",
            f"the {what} of step {step} is not finite; its {kind}: {', '.join(ids)[:2000]}",
            f"look at these {kind}, or lower training.learning_rate",
            {"step": step, kind: ids},
        )


class StudentTrainer(GuardedTrainer):
    """What all ways of training on written texts share.

    The normalizer of the loss is that of the whole optimizer step: with the same batch size, gradient accumulation
    and data parallelism give the loss and gradient of one large batch.
    """

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        *,
        rows: Rows,
        validation: Rows | None,
        batch_size: int,
    ) -> None:
        self.batch_size = batch_size
        super().__init__(
            model,
            arguments,
            train_dataset=rows,
            eval_dataset=validation,
            data_collator=self._collate_training,
        )
        self.loss_is_scaled_for_ga = True  # by the counts of the whole step
        self._sums = torch.zeros(
            len(self.parts) + 1, device=self.args.device
        )  # since the last log; then tokens
        self._logged_step: int | None = None
        self._last_rows: list[int] = []  # of the current optimizer step

    # -- what a way of training says -----------------------------------------------------------------------

    @abstractmethod
    def collate(self, rows: list[int], dataset: Any) -> dict[str, torch.Tensor]:
        """A batch of rows."""

    @abstractmethod
    def counts(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """float32 [parts]: how many items each part is the mean of."""

    @abstractmethod
    def losses(
        self, model: Any, batch: dict[str, torch.Tensor], counts: torch.Tensor, dataset: Any
    ) -> Losses:
        """The losses of a batch; `counts` are those of the whole optimizer step."""

    @abstractmethod
    def total(self, parts: Sequence[float]) -> float:
        """The loss that the parts make."""

    # -- batches -----------------------------------------------------------------------------------------

    def _collate_training(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return self._collate(rows, self.train_dataset)

    def _collate(self, rows: list[int], dataset: Any) -> dict[str, torch.Tensor]:
        return {**self.collate(rows, dataset), "rows": torch.tensor(rows)}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return _Order(self.train_dataset.lengths, self.batch_size, self.args.seed)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """The counts of the whole optimizer step, over micro-batches and processes."""
        self._last_rows = [row for batch in batch_samples for row in batch["rows"].tolist()]
        return self._summed(torch.stack([self.counts(batch) for batch in batch_samples]).sum(0).to(device))

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
        assert num_items_in_batch is not None
        losses = self.losses(model, inputs, num_items_in_batch, self.train_dataset)
        if not torch.isfinite(losses.total):
            raise self._failed("loss", self._ids(inputs["rows"].tolist()))
        if self._logged_step is None:  # a resumed run does not begin at 0
            self._logged_step = self.state.global_step
        self._sums += torch.cat([losses.parts, losses.tokens.to(losses.parts).reshape(1)])
        return losses.total * self.args.world_size

    def step_ids(self) -> list[str]:
        return self._ids(self._last_rows)

    def _ids(self, rows: list[int]) -> list[str]:
        return [self.train_dataset.ids[row] for row in rows]

    # -- validation and logs -----------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The loss on the validation rows, each process computing a part of them."""
        dataset: Any = self.eval_dataset
        rows = range(self.args.process_index, len(dataset), self.args.world_size)
        order = sorted(rows, key=dataset.lengths.__getitem__)
        size = self.args.per_device_eval_batch_size
        sums = torch.zeros(2, len(self.parts), device=self.args.device)
        one = torch.ones(len(self.parts), device=self.args.device)
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            for start in range(0, len(order), size):
                inputs = self._prepare_inputs(self._collate(order[start : start + size], dataset))
                sums += torch.stack(
                    [self.losses(self.model, inputs, one, dataset).parts, self.counts(inputs)]
                )
        self.model.train(was_training)
        totals, counts = self._summed(sums).tolist()
        parts = [total / max(1.0, count) for total, count in zip(totals, counts, strict=True)]
        metrics = {"eval_loss": self.total(parts)}
        metrics |= {f"eval_{name}": part for name, part in zip(self.parts, parts, strict=True)}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, and the tokens that it was computed on."""
        if "loss" in logs:
            *parts, tokens = self._summed(self._sums).tolist()
            steps = max(1, self.state.global_step - (self._logged_step or 0))
            logs |= {name: part / steps for name, part in zip(self.parts, parts, strict=True)}
            logs |= {"tokens": tokens}
            self._sums.zero_()
            self._logged_step = self.state.global_step
        super().log(logs, start_time)


class _Order(Sampler[int]):
    """The rows of an epoch, batch after batch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        for batch in batches_of_epoch(self._lengths, self._batch_size, self._seed, self._epoch):
            yield from batch

    def __len__(self) -> int:
        return len(self._lengths) // self._batch_size * self._batch_size


class Recorder(TrainerCallback):
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
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True  # the student that is kept, also where the steps do not divide

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
