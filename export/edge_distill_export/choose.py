"""Mixed precision within a budget: candidates of the search and of rules, decided by forward passes.

The text that decides was seen neither by the quantization nor by the sensitivities, and is not the held-out text of
the export's post-condition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge_distill_export.activations import replaced_weights
from edge_distill_export.artifact import Source
from edge_distill_export.calibration import Text, builtin_traces, render_traces
from edge_distill_export.collect import OWN_PROBLEMS, Calibration
from edge_distill_export.families import EMBEDDING, HEAD
from edge_distill_export.grid import QuantizedTensor, quantize_rtn
from edge_distill_export.mixed import Choice, Costs, candidates, cheapest, summary
from edge_distill_export.parity import Parity, References
from edge_distill_export.progress import stage
from edge_distill_export.targets import Budget
from edge_distill_runtime.errors import InputError

_HELD_BACK = 6  # every so many of the user's traces decides
_DECIDING_TOKENS = 2000  # of reasoning and answers, at most
_CONFIRMED = 3  # candidates of the search
_HOPELESS = 1.5  # what is predicted to lose so many times more than the best is not measured
_KL_ROUNDS = 5
_KL_MARGIN = 0.95  # of a wanted KL divergence: other text deviates

Tensors = dict[str, QuantizedTensor]


@dataclass(frozen=True)
class Chosen:
    """The tensors of one budget."""

    tensors: Tensors
    record: dict[str, Any]
    """What was chosen and why, for the manifest."""


def hold_back(source: Source, calibration: Calibration) -> tuple[Calibration, list[Text]]:
    """The calibration without the text that decides, and that text: other problems, or some of the user's traces."""
    texts = calibration.texts
    if calibration.origin == "own":
        rest = builtin_traces("calibration")[OWN_PROBLEMS:]
        tokenizer = source.checkpoint.tokenizer
        return calibration, _limited(render_traces(rest, source.style, tokenizer, source.context_length))
    if len(texts) < 2:
        raise InputError(
            "too-few-traces", "mixed precision needs two traces at least", "add traces to --calibrate"
        )
    fitted = tuple(text for index, text in enumerate(texts) if index % _HELD_BACK)
    return replace(calibration, texts=fitted), _limited(texts[::_HELD_BACK])


def _limited(texts: Sequence[Text]) -> list[Text]:
    """An even selection of at most `_DECIDING_TOKENS` tokens, at least one text."""
    total = sum(len(text.tokens) - text.prompt for text in texts)
    keep = max(1, min(len(texts), len(texts) * _DECIDING_TOKENS // total))
    return [texts[index * len(texts) // keep] for index in range(keep)]


class Chooser:
    """Chooses for any number of budgets; what was measured once is not measured again."""

    def __init__(self, source: Source, low: Tensors, costs: Costs, references: References) -> None:
        """`low` has every tensor at 4 bits, `costs` its sensitivities; `references` are on the deciding text."""
        self._model = source.checkpoint.model
        self._low, self._costs, self._references = low, costs, references
        self._measured: dict[frozenset[str], Parity] = {}
        self._tables = [name for name in (EMBEDDING, HEAD) if name in low]

    def choose(self, budget: Budget, smallest: int) -> tuple[Choice, dict[str, Any]]:
        """The best choice within the budget, and the record of how it came about.

        `smallest` is the size of the model file with 4 bits everywhere.
        """
        if budget.bytes is not None:
            room = budget.bytes - smallest
            if room < 0:
                raise InputError(
                    "budget-too-small",
                    f"a budget of {budget.bytes / 1e6:g} MB was given, "
                    f"with 4 bits everywhere the model takes {smallest / 1e6:.1f} MB",
                    f"give --size {(smallest + 50_000) / 1e6:.1f}MB or more",
                )
            choice, tried = self._best(room)
        else:
            assert budget.kl is not None
            choice, tried = self._least(budget.kl * _KL_MARGIN)
        found = self.measure(choice.high).overall
        return choice, {
            "budget": str(budget),
            "origin": choice.origin,
            "eight_bits": summary(self._costs.names, choice.high),
            "extra_bytes": self._costs.spent(choice.high),
            "predicted_kl": self._costs.predicted(choice.high),
            "deciding_kl": found.kl_mean,
            "deciding_top1": found.top1,
            "deciding_tokens": found.tokens,
            "candidates": [
                {"origin": other.origin, "kl": self.measure(other.high).overall.kl_mean} for other in tried
            ],
        }

    def measure(self, high: frozenset[str]) -> Parity:
        """The checkpoint with these tensors at 8 bits and all others at 4, on the deciding text."""
        if high not in self._measured:
            self._measured[high] = self.measure_tensors(self.tensors(high))
        return self._measured[high]

    def measure_tensors(self, tensors: Mapping[str, QuantizedTensor]) -> Parity:
        """The checkpoint with these tensors in place of its own, on the deciding text."""
        weights = {name: tensor.dequantize() for name, tensor in tensors.items()}
        with replaced_weights(self._model, weights):
            return self._references.compare_model(self._model)

    def tensors(self, high: frozenset[str]) -> Tensors:
        """Those in `high` rounded to 8 bits, the others at 4."""
        raised = {name: quantize_rtn(self._model.get_parameter(name).data, 8, name) for name in high}
        return {**self._low, **raised}

    def candidates(self, room: int) -> list[Choice]:
        """The best predicted choices of the search, and every rule or other choice that is not hopeless."""
        found, by_rule = candidates(self._costs, room, self._tables)
        best = self._costs.predicted(found[0].high)
        hopeful = [
            choice
            for choice in (*by_rule, *found[_CONFIRMED:])
            if self._costs.predicted(choice.high) <= _HOPELESS * best
        ]
        return list({choice.high: choice for choice in (*hopeful, *found[:_CONFIRMED])}.values())

    def _best(self, room: int) -> tuple[Choice, list[Choice]]:
        tried = self.candidates(room)
        with stage("Confirming candidates", len(tried)) as advance:
            for choice in tried:
                self.measure(choice.high)
                advance()
        return min(tried, key=lambda choice: self.measure(choice.high).overall.kl_mean), tried

    def _least(self, kl: float) -> tuple[Choice, list[Choice]]:
        """The smallest choice found whose measured KL divergence is at most `kl`."""
        everything = Choice("search", frozenset(self._costs.names))
        reached = self.measure(everything.high).overall.kl_mean
        if reached > kl:
            raise InputError(
                "kl-too-small",
                f"a mean KL divergence of {kl / _KL_MARGIN:g} was asked for, 8 bits everywhere reach {reached:.4f}",
                f"give --kl {1.1 * reached / _KL_MARGIN:.3g} or more",
            )
        best, tried, wanted = everything, [everything], kl
        with stage("Confirming candidates", _KL_ROUNDS) as advance:
            for _ in range(_KL_ROUNDS):
                choice = cheapest(self._costs, wanted)
                found = self.measure(choice.high).overall.kl_mean
                tried.append(choice)
                if found <= kl and self._costs.spent(choice.high) < self._costs.spent(best.high):
                    best = choice
                wanted *= kl / max(found, 1e-12)
                advance()
        return best, list(dict.fromkeys(tried))


def finish(
    chooser: Chooser,
    choice: Choice,
    record: dict[str, Any],
    again: Callable[[frozenset[str]], Tensors] | None,
) -> Chosen:
    """Quantize `again` with the chosen tensors at 8 bits, so that later layers see them; kept where it is better."""
    tensors = chooser.tensors(choice.high)
    if again is None:
        return Chosen(tensors, record)
    fitted = again(choice.high)
    with stage("Comparing with the first quantization"):
        found = chooser.measure_tensors(fitted).overall
    better = found.kl_mean <= record["deciding_kl"]
    record = {**record, "requantized_kl": found.kl_mean, "requantized": better}
    return Chosen(fitted if better else tensors, record)
