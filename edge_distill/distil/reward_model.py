"""A process reward model: how likely each step of a reasoning is right (Lightman et al. 2023, arXiv:2305.20050).

A student or teacher with a head of two classes instead of its vocabulary, read at the last token of each step; saved
as transformers' token classification, as TRL's PRM trainer does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill.distil.dataset import solution_of
from edge_distill.distil.kinds import LENGTHS
from edge_distill.distil.spans import Example, Solution, Step, collate, make_example
from edge_distill.traces.trace import Trace
from edge_distill_export.calibration import Style
from edge_distill_export.calibration import Trace as RenderedTrace
from edge_distill_runtime.bundles.files import sha256_of
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["RewardModel", "load_reward_model", "with_reward_head"]

RIGHT = 1
"""The class of a right step; 0 is a wrong one."""
_BATCH = 8


def with_reward_head(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The model with a fresh head of two classes instead of its vocabulary; the layers are shared, not copied.

    Raises `InputError` for an architecture that transformers cannot classify tokens with.
    """
    import torch
    from transformers import AutoModelForTokenClassification

    config = type(model.config).from_dict({**model.config.to_dict(), "num_labels": 2})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            classifier: Any = AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
        except ValueError as exc:
            raise InputError(
                "no-classifier",
                f"transformers has no token classification for {config.model_type}",
                "take a student of another architecture",
            ) from exc
    setattr(classifier, classifier.base_model_prefix, model.base_model)
    return classifier


class RewardModel:
    """Scores steps; batches of up to eight reasonings at a time."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        style: Style,
        context: int,
    ) -> None:
        self.name = name
        """`prm:` and a short hash of the weights: its identity in `Trace.sampling`."""
        self._model, self._tokenizer, self._style, self._context = model.eval(), tokenizer, style, context

    def __call__(self, problem: str, steps: Sequence[str]) -> float:
        """How likely the whole beginning is right: that of its least likely step, between 0 and 1.

        0 for one that does not fit the context or cannot be written: nothing speaks for it.
        """
        if not steps:
            return 1.0
        (worth,) = self._worths([lambda: self._example(problem, steps)])
        return worth

    def score_steps(self, reasonings: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """For each problem and its steps, the probability that each step is right.

        Raises `InputError` for a reasoning that does not fit the context or cannot be written.
        """
        return self._scores([self._example(*reasoning) for reasoning in reasonings])

    def score_traces(self, traces: Sequence[Trace]) -> list[float]:
        """How likely the whole reasoning of each trace is right, in the text that the model was trained on.

        That of its least likely step, between 0 and 1; 0 for one without steps, and as in `__call__`.
        """
        return self._worths([lambda trace=trace: self._example_of(trace) for trace in traces])  # type: ignore[misc]

    def _worths(self, makers: Sequence[Callable[[], Example]]) -> list[float]:
        examples: dict[int, Example] = {}
        for index, make in enumerate(makers):
            try:
                examples[index] = make()
            except InputError as exc:
                if exc.code == "dropped-from-text":  # the chat form is at fault, not the reasoning
                    raise
        scores = dict(zip(examples, self._scores(list(examples.values())), strict=True))
        return [min(scores.get(index, ()), default=0.0) for index in range(len(makers))]

    def _scores(self, examples: Sequence[Example]) -> list[list[float]]:
        import torch

        order = sorted(range(len(examples)), key=lambda index: len(examples[index].tokens))
        scores: list[list[float]] = [[] for _ in examples]
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            padding = self._tokenizer.pad_token_id or 0
            batch = collate([examples[index] for index in chosen], padding, multiple=LENGTHS)
            names = ("input_ids", "attention_mask", "position_ids")
            texts = {name: batch[name].to(self._model.device) for name in names}
            with torch.no_grad():
                right = self._model(**texts).logits.float().softmax(-1)[..., RIGHT].cpu()
            for row, index in enumerate(chosen):
                scores[index] = [float(right[row, span.stop - 1]) for span in examples[index].steps]
        return scores

    def _example(self, problem: str, steps: Sequence[str]) -> Example:
        trace = RenderedTrace(({"role": "user", "content": problem},), "\n".join(steps), "")
        marked = tuple(Step(step, "language", "unknown") for step in steps)
        return make_example(Solution(trace, steps=marked), self._style, self._tokenizer, self._context)

    def _example_of(self, trace: Trace) -> Example:
        return make_example(solution_of(trace, "full"), self._style, self._tokenizer, self._context)


def load_reward_model(folder: Path) -> RewardModel:
    """Open what `distill` made of a recipe with `reward_model`; raises `InputError` when it is something else."""
    import torch
    from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

    from edge_distill_export.artifact import style_of
    from edge_distill_export.checkpoint_files import check_directory

    check_directory(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if not any("TokenClassification" in name for name in config.architectures or ()):
        raise InputError(
            "no-reward-model", f"{folder} is no reward model", "train one by recipes/reward_model.yaml"
        )
    model, report = AutoModelForTokenClassification.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    if any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise InputError("incomplete-reward-model", f"{folder} lacks weights", "train it again")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return RewardModel(_name(folder), model, tokenizer, style_of(tokenizer), config.max_position_embeddings)


def _name(folder: Path) -> str:
    hashes = [sha256_of(path)[1] for path in sorted(folder.glob("*.safetensors"))]
    return f"prm:{hashlib.sha256(''.join(hashes).encode()).hexdigest()[:8]}"
