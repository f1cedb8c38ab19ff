"""On-policy distillation: the student writes, the teacher scores what it wrote (GKD, Agarwal et al. 2024).

A student that only follows a teacher's texts never sees its own mistakes; here a part of the batches is its own
text, sampled with the weights of that step, and the divergence to the teacher is taken on it (arXiv:2306.13649).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.utils import parametrize

from edge_distill.distil.following import DistillationTrainer
from edge_distill.distil.kinds import ANSWER, LENGTHS, PROMPT, REASONING
from edge_distill.distil.spans import Example, collate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from edge_distill_runtime.text.chat import ReasoningMarkers

__all__ = ["OnPolicyTrainer", "Writing", "example_of_own"]


@dataclass(frozen=True)
class Writing:
    """How the student writes."""

    share: float
    """Of the micro-batches that are its own text."""
    temperature: float
    max_tokens: int
    stop_ids: tuple[int, ...]
    tokenizer: PreTrainedTokenizerFast
    markers: ReasoningMarkers | None


class OnPolicyTrainer(DistillationTrainer):
    """Replaces a part of the micro-batches by what the student answers to the same prompts."""

    def __init__(self, *arguments: Any, writing: Writing, **rest: Any) -> None:
        self.writing = writing
        super().__init__(*arguments, **rest)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The micro-batches of an optimizer step; which are replaced depends on seed, step and process alone."""
        batches = []
        for index, batch in enumerate(islice(epoch_iterator, num_batches)):
            number = (self.args.seed, self.state.global_step, self.args.process_index, index)
            generator = np.random.default_rng(number)
            own = generator.random() < self.writing.share
            batches.append(self._own(batch, int(generator.integers(2**31))) if own else batch)
        return batches, self._get_num_items_in_batch(batches, device)

    def _own(self, batch: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
        examples = [self.train_dataset.examples[row] for row in batch["rows"].tolist()]
        prompts = [example.tokens[: example.first] for example in examples]
        written = self._write(prompts, seed)
        own = [example_of_own(*pair, self.writing) for pair in zip(prompts, written, strict=True)]
        fresh = collate(own, self.pad_id, self.weights, multiple=LENGTHS)
        return {**{name: part.to(self.args.device) for name, part in fresh.items()}, "rows": batch["rows"]}

    def _write(self, prompts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
        """What the student samples after each prompt, its end token included."""
        longest = max(map(len, prompts))
        tokens = torch.full((len(prompts), longest), self.pad_id)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):  # left padding: all continue at the same place
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        with torch.random.fork_rng(), torch.no_grad(), parametrize.cached():
            torch.manual_seed(seed)
            output = model.generate(
                input_ids=tokens.to(self.args.device),
                attention_mask=mask.to(self.args.device),
                do_sample=True,
                temperature=self.writing.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=self.writing.max_tokens,
                eos_token_id=list(self.writing.stop_ids),
                pad_token_id=self.pad_id,
            )
        return [_until_end(row, self.writing.stop_ids) for row in output[:, longest:].tolist()]


def example_of_own(prompt: Sequence[int], written: Sequence[int], writing: Writing) -> Example:
    """A text of the student's own: reasoning up to the closing marker, then the answer; without one all reasoning."""
    kinds = [REASONING] * len(written)
    if writing.markers is None:
        kinds = [ANSWER] * len(written)
    elif writing.markers.close in writing.tokenizer.decode(written):
        first, last = 0, len(written)  # the shortest beginning that holds the marker
        while first < last:
            middle = (first + last) // 2
            if writing.markers.close in writing.tokenizer.decode(written[:middle]):
                last = middle
            else:
                first = middle + 1
        kinds[first:] = [ANSWER] * (len(written) - first)
    return Example((*prompt, *written), (*[PROMPT] * len(prompt), *kinds), ())


def _until_end(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    ends = [at for at, token in enumerate(tokens) if token in stop_ids]
    return tokens[: ends[0] + 1] if ends else tokens
