"""A recipe: all that decides how a student is trained, in one YAML file with dotted overrides."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge_distill.distil.spans import StepWeights
from edge_distill.traces.granularity import Granularity
from edge_distill.traces.trace import Role
from edge_distill_runtime.bundles.files import open_regular
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from edge_distill.distil.losses import DistillationLoss

__all__ = ["Recipe", "load_recipe", "to_yaml"]

_MAX_BYTES = 1 << 20


class _Section(BaseModel):
    """Unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SpanSection(_Section):
    """What a token costs; see `losses.SpanLoss`."""

    cross_entropy: float = 1.0
    forward_kl: float = 0.0
    reverse_kl: float = 0.0
    jensen_shannon: float = 0.0
    mixture: float = 0.5
    temperature: float = 1.0


class LossSection(_Section):
    """L = alpha * L_reasoning + beta * L_answer; see `losses.py`."""

    alpha: float = 1.0
    beta: float = 1.0
    reasoning: SpanSection = SpanSection()
    answer: SpanSection = SpanSection()

    def loss(self) -> DistillationLoss:
        """The loss itself; raises `InputError` for weights that make none."""
        from edge_distill.distil.losses import DistillationLoss, SpanLoss

        spans = [SpanLoss(**span.model_dump()) for span in (self.reasoning, self.answer)]
        return DistillationLoss(self.alpha, self.beta, *spans)


class StepsSection(_Section):
    """What the tokens of a step weigh; see `spans.StepWeights`."""

    verified: float = 1.0
    unknown: float = 1.0
    refuted: float = 0.0
    roles: dict[Role, float] = {}
    critical: float = 1.0

    def weights(self) -> StepWeights:
        return StepWeights(**self.model_dump())


class TeacherSection(_Section):
    """Whose distributions the student follows."""

    checkpoint: str
    cache: Path | None = None
    """A folder for its likeliest tokens, computed once; without it the teacher runs beside the student."""
    k: int = Field(default=64, ge=1)
    """Tokens that the cache keeps of each distribution, besides one bucket for all others."""


class OnPolicySection(_Section):
    """The student writes a part of the text itself, and the teacher scores it; see `on_policy.py`."""

    share: float = Field(default=0.5, gt=0, le=1)
    """Of the micro-batches."""
    temperature: float = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=256, ge=1)


class PreferencesSection(_Section):
    """Pairs of a better and a worse answer instead of traces; see `preferences.py`."""

    pairs: list[Path] = Field(min_length=1)
    """JSON Lines in TRL's form, as `traces --pairs` writes them."""
    validation: list[Path] = []
    beta: float = Field(default=0.1, gt=0)
    """How little the student may leave what it was."""
    cross_entropy: float = Field(default=0.0, ge=0)
    """The weight of the chosen text's own cross-entropy."""


class RewardModelSection(_Section):
    """Train a process reward model on the steps' verdicts instead of a student; see `reward_model.py`."""

    planted: float = Field(default=0.5, ge=0, le=1)
    """The part of the traces that get a mistake in one step."""


class _OwnSamplesSection(_Section):
    """What the student is asked, and who judges what it writes; see `own_samples.py`."""

    problems: list[str] = Field(min_length=1)
    """Sources as `traces` takes them: task:FAMILY?option=value, FILE.jsonl, hf:NAME. Asked is their training split."""
    count: int | None = Field(default=None, ge=1)
    """Problems of each source; a file's are all taken by default."""
    held_out: int = Field(default=100, ge=1)
    """Problems of each source's validation split, for measuring."""
    temperature: float = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=256, ge=1)
    reward_model: Path | None = None
    """A folder that `distill` made by a recipe with `reward_model`; it judges the steps."""


class ExpertIterationSection(_OwnSamplesSection):
    """The student learns from its own right answers, round by round; see `expert_iteration.py`."""

    rounds: int = Field(default=3, ge=1)
    samples: int = Field(default=4, ge=1)
    """Of each problem, in each round."""
    at_once: int = Field(default=16, ge=1)
    """Samples that are written together."""
    accept: float = Field(default=0.5, ge=0, le=1)
    """How likely the reward model must hold the least likely step of a sample for right."""


class RewardsSection(_Section):
    """What each part of a sample's reward weighs; see `own_samples.py`."""

    answer: float = Field(default=1.0, ge=0)
    """The checker's word on the answer: 0 or 1."""
    steps: float = Field(default=0.5, ge=0)
    """The share of the steps that the checker verified."""
    reward_model: float = Field(default=0.5, ge=0)
    """How likely the reward model holds the least likely step for right, if there is one."""


class GrpoSection(_OwnSamplesSection):
    """A policy gradient on the rewards of the student's own samples; see `grpo.py`."""

    group: int = Field(default=8, ge=2)
    """Samples of each problem, which are compared with each other."""
    beta: float = Field(default=0.04, ge=0)
    """The weight of the KL divergence to the student that the recipe begins with."""
    rewards: RewardsSection = RewardsSection()


class LoraSection(_Section):
    """Low-rank adapters on all linear layers instead of the weights themselves; merged at the end."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TrainingSection(_Section):
    """The optimizer's steps."""

    learning_rate: float = Field(default=1e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """The part of the steps in which the learning rate rises."""
    epochs: float = Field(default=1.0, gt=0)
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; instead of epochs."""
    batch_size: int = Field(default=32, ge=1)
    """Traces of one optimizer step, of all processes together; of `grpo` its samples."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Traces that one process computes at a time."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the processor multiplies it in hardware. The weights stay float32."""
    gradient_checkpointing: bool = False
    device: Literal["auto", "cpu"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**31)
    log_every: int = Field(default=10, ge=1)
    evaluate_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between two losses on the validation traces; by default ten times in a run."""
    save_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between two checkpoints; by default ten times in a run."""
    keep_checkpoints: int = Field(default=2, ge=1)
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = []


class Recipe(_Section):
    """How a student is trained."""

    student: str
    """A checkpoint to begin with, as `init-student` makes it."""
    out: Path
    """The run's folder: checkpoints, metrics.jsonl, and at the end the trained student in `student`."""
    traces: list[Path] = []
    validation: list[Path] = []
    granularity: Granularity = "full"
    """How much of the reasoning is shown; "answer" is outcome supervision."""
    keep_wrong: bool = False
    """Learn also from traces whose answer is known to be wrong."""
    context: int = Field(default=1024, ge=32)
    """Longer traces are left out, and counted."""
    loss: LossSection = LossSection()
    steps: StepsSection = StepsSection()
    teacher: TeacherSection | None = None
    on_policy: OnPolicySection | None = None
    preferences: PreferencesSection | None = None
    reward_model: RewardModelSection | None = None
    expert_iteration: ExpertIterationSection | None = None
    grpo: GrpoSection | None = None
    quantize: Literal["int4", "int8"] | None = None
    """Train through the export grid, so that `export --method rtn` gives exactly the trained integers."""
    lora: LoraSection | None = None
    training: TrainingSection = TrainingSection()

    @property
    def files(self) -> list[Path]:
        """Everything that is learned from or validated on."""
        pairs = [*self.preferences.pairs, *self.preferences.validation] if self.preferences else []
        return [*self.traces, *self.validation, *pairs]

    @property
    def rows_per_step(self) -> int:
        """How many traces, pairs or problems one optimizer step takes."""
        return self.training.batch_size // (self.grpo.group if self.grpo else 1)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        loss, training = self.loss.loss(), self.training
        if bool(self.traces) == bool(self.preferences) and not (self.expert_iteration or self.grpo):
            raise ValueError("give either traces or preferences")
        if self.grpo:
            self._check_grpo(self.grpo)
        if self.expert_iteration and self.teacher and self.teacher.cache:
            raise ValueError("expert_iteration has new texts in every round: leave the teacher's cache out")
        if self.on_policy and (self.teacher is None or self.teacher.cache):
            raise ValueError(
                "on_policy needs a teacher without a cache: it scores text that nobody wrote before"
            )
        if self.on_policy and (loss.reasoning.cross_entropy or loss.answer.cross_entropy):
            raise ValueError(
                "on_policy with cross_entropy would teach the student its own mistakes: set it to 0"
            )
        if loss.needs_teacher and self.teacher is None:
            raise ValueError("the loss compares with a teacher: add `teacher: {checkpoint: ...}`")
        if self.teacher is not None and not loss.needs_teacher:
            raise ValueError("a teacher is given, but no term of the loss looks at it: add e.g. forward_kl")
        spans = [span for span in (loss.reasoning, loss.answer) if span.needs_teacher]
        if self.teacher and self.teacher.cache and len({span.temperature for span in spans}) > 1:
            raise ValueError("a cache holds logits at one temperature: give both spans the same")
        if training.batch_size % training.micro_batch_size:
            raise ValueError(
                f"batch_size {training.batch_size} is no multiple of micro_batch_size {training.micro_batch_size}"
            )
        modes = ("on_policy", "preferences", "reward_model", "expert_iteration", "grpo")
        chosen = [name for name in modes if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other")
        if self.reward_model and (self.teacher or self.quantize or self.lora):
            raise ValueError("a reward_model takes no teacher, and trains whole: leave quantize and lora out")
        if self.quantize and self.lora:
            raise ValueError("quantize and lora exclude each other: the grid needs the whole weight")
        return self

    def _check_grpo(self, section: GrpoSection) -> None:
        if self.traces or self.validation or self.teacher:
            raise ValueError(
                "grpo learns from its own samples alone: leave traces, validation and teacher out"
            )
        if self.training.batch_size % section.group:
            raise ValueError(
                f"batch_size {self.training.batch_size} is no multiple of grpo.group {section.group}: a step compares"
                " all samples of a problem"
            )
        rewards = section.rewards
        if not (rewards.answer or rewards.steps or (section.reward_model and rewards.reward_model)):
            raise ValueError("all rewards of grpo are 0: nothing could be learned")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as `training.learning_rate=3e-4`.

    Relative paths belong to the working directory, as those of the command line do. Raises `InputError` for what
    is no recipe, with the nearest known key for one that is unknown.
    """
    with open_regular(path, allow_links=True) as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise InputError("bad-recipe", f"{path} has more than {_MAX_BYTES} bytes", "a recipe is a short file")
    content = _parse(data.decode("utf-8", "replace"), str(path))
    if not isinstance(content, dict):
        raise InputError(
            "bad-recipe", f"{path} holds {type(content).__name__}", "a recipe is a mapping of keys"
        )
    for override in overrides:
        _apply(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as exc:
        raise _translated(path, exc) from exc


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every default written out; reading it gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which multiply: nine nested ones make a billion nodes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        reason = " ".join(str(exc).split())[:200]
        raise InputError("bad-recipe", f"{name} is no YAML: {reason}", "see recipes/ for examples") from exc


def _apply(content: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    parts = key.split(".")
    if not sign or not all(parts):
        raise InputError("bad-override", f"{override!r} is no override", "write training.learning_rate=3e-4")
    section = content
    for part in parts[:-1]:
        inner = section.get(part)
        section[part] = dict(inner) if isinstance(inner, dict) else {}
        section = section[part]
    section[parts[-1]] = _number(_parse(value, override))


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _translated(path: Path, exc: ValidationError) -> InputError:
    problem = exc.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        close = get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return InputError("unknown-key", f"{path} has the unknown key {where[:200]}", hint)
    reason = problem["msg"].removeprefix("Value error, ")
    return InputError("bad-recipe", f"{path}{': ' + where[:200] if where else ''}: {reason}", "see recipes/")


def _known_keys(location: Sequence[int | str]) -> list[str]:
    """The keys of the section at a place in the recipe."""
    model: Any = Recipe
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next(
            option for option in options if isinstance(option, type) and issubclass(option, BaseModel)
        )
    return list(model.model_fields)
