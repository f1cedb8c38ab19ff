"""Self-consistency: votes of samples for answers, and when enough of them agree."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from edge_distill_runtime.errors import InputError
from edge_distill_runtime.reasoning.answer_forms import Answer

__all__ = [
    "Tally",
    "Vote",
    "confidence_weight",
    "leader_posterior",
    "regularized_incomplete_beta",
    "samples_to_decide",
    "tally",
]

MAX_VOTES = 1e9  # the continued fraction takes about the square root of it in steps


@dataclass(frozen=True)
class Vote:
    """One sample's answer; the weight is finite and not negative."""

    answer: Answer
    weight: float = 1.0


@dataclass(frozen=True)
class Tally:
    """The count of the votes. Unparsed votes never win, but they count in the total and lower the confidence."""

    ranking: tuple[
        tuple[Answer, float], ...
    ]  # parsed answers and their weight, heaviest first; ties: first come
    unparsed: float  # weight
    total: float  # weight of all votes

    @property
    def leader(self) -> Answer | None:
        """The heaviest parsed answer, as its first vote wrote it; None when no parsed vote has weight."""
        return self.ranking[0][0] if self.leading > 0 else None

    @property
    def leading(self) -> float:
        """Weight of the leader."""
        return self.ranking[0][1] if self.ranking else 0.0

    @property
    def second(self) -> float:
        """Weight of the runner-up."""
        return self.ranking[1][1] if len(self.ranking) > 1 else 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Display of each parsed answer: its share of the total, heaviest first; with unparsed_share they sum to 1."""
        return {answer.display: self._share(weight) for answer, weight in self.ranking}

    @property
    def unparsed_share(self) -> float:
        return self._share(self.unparsed)

    @property
    def confidence(self) -> float:
        """The leader's share of the total, in [0, 1]."""
        return self._share(self.leading)

    def _share(self, weight: float) -> float:
        return weight / self.total if self.total else 0.0


def tally(votes: Iterable[Vote]) -> Tally:
    """Count votes by the answers' keys. Raises InputError for a weight that is negative or not finite."""
    answers: dict[Hashable, Answer] = {}
    weights: dict[Hashable, list[float]] = {}
    unparsed = []
    for vote in votes:
        if not 0 <= vote.weight < math.inf:
            raise InputError(
                "bad-vote", f"a vote weighs {vote.weight}", "a weight must be finite and 0 or more"
            )
        if vote.answer.kind == "unparsed":
            unparsed.append(vote.weight)
        else:
            answers.setdefault(vote.answer.key, vote.answer)
            weights.setdefault(vote.answer.key, []).append(vote.weight)
    # fsum: the result does not depend on the order in which samples end
    sums = [(answer, math.fsum(weights[key])) for key, answer in answers.items()]
    ranking = tuple(sorted(sums, key=lambda pair: -pair[1]))
    missing = math.fsum(unparsed)
    return Tally(ranking, missing, math.fsum([missing, *(weight for _, weight in ranking)]))


def confidence_weight(mean_logprob: float) -> float:
    """Weight of a sample, in (0, 1]: the inverse perplexity exp(mean log-probability of its tokens).

    The length-normalized weight of self-consistency (Wang et al. 2023, arXiv:2203.11171). NaN, from a sample without
    tokens or a broken one, is trusted least, like minus infinity; rounding above 0 is 1.
    """
    if math.isnan(mean_logprob):
        return sys.float_info.min
    return max(math.exp(min(mean_logprob, 0.0)), sys.float_info.min)


def leader_posterior(leading: float, second: float) -> float:
    """Probability that the leading answer has the majority over the runner-up, from the weights of their votes.

    P(p > 1/2) for p ~ Beta(leading + 1, second + 1): the stopping rule of Adaptive-Consistency (Aggarwal et al. 2023,
    arXiv:2305.11860). Raises InputError outside [0, 1e9].
    """
    for votes in (leading, second):
        if not 0 <= votes <= MAX_VOTES:
            raise InputError("bad-votes", f"{votes} votes", f"it must be in [0, {MAX_VOTES:g}]")
    return regularized_incomplete_beta(second + 1, leading + 1, 0.5)


def samples_to_decide(stop_when: float) -> int:
    """The fewest unanimous votes of weight 1 whose posterior reaches `stop_when`: 4 for 0.95.

    Raises InputError unless 0 < stop_when < 1: no number of votes makes certain.
    """
    if not 0 < stop_when < 1:
        raise InputError(
            "bad-stop-when", f"stop_when is {stop_when}", "it must be between 0 and 1, without them"
        )
    votes = 1
    while leader_posterior(votes, 0) < stop_when:
        votes += 1
    return votes


def regularized_incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b) = P(p <= x) for p ~ Beta(a, b); x in [0, 1]. Relative error below 1e-12 for a, b >= 1/2.

    The continued fraction DLMF 8.17.22 on the side of the mean where it converges in about sqrt(max(a, b)) steps.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - regularized_incomplete_beta(b, a, 1 - x)
    return _beta_density(a, b, x) / a * _beta_fraction(a, b, x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Lentz's algorithm as modified by Thompson and Barnett (1986)."""
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    value = d
    for m in range(1, 1_000_000):
        step = 1.0
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + numerator * d or tiny)
            c = 1 + numerator / c or tiny
            step = c * d
            value *= step
        if abs(step - 1) < 1e-15:
            break
    return value


def _beta_density(a: float, b: float, x: float) -> float:
    """x^a (1-x)^b / B(a, b), by Loader's saddle-point expansion (2000).

    Plain log-gammas would lose log10(a + b) digits.
    """
    away, both = x * b - (1 - x) * a, a + b
    exponent = a * _log_minus(x * both / a, away / a) + b * _log_minus((1 - x) * both / b, -away / b)
    exponent += _stirling_error(both) - _stirling_error(a) - _stirling_error(b)
    return math.sqrt(a / both * b / (2 * math.pi)) * math.exp(exponent)


def _log_minus(ratio: float, t: float) -> float:
    """log(ratio) - t without cancellation, for ratio = 1 + t."""
    if abs(t) > 0.2:
        return math.log(ratio) - t
    v = t / (2 + t)  # log(1 + t) = 2 atanh(v) = 2 (v + v^3/3 + v^5/5 + ...)
    return 2 * math.fsum(v**k / k for k in range(3, 31, 2)) - t * v


def _stirling_error(z: float) -> float:
    """log Gamma(z) minus Stirling's formula (z - 1/2) log z - z + log(2 pi)/2, z > 0."""
    if z < 16:
        return math.lgamma(z) - ((z - 0.5) * math.log(z) - z + 0.5 * math.log(2 * math.pi))
    # DLMF 5.11.1: B_2k / (2k (2k-1) z^(2k-1))
    terms = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
    return math.fsum(term / z ** (2 * k + 1) for k, term in enumerate(terms))
