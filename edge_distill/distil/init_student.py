"""`edge-distill init-student`: a student to train, from a checkpoint as it is, cut from it, or new."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edge_distill.distil.chat_form import set_thinking_form
from edge_distill.distil.cutting import (
    block_influence,
    channel_scores,
    cut,
    evenly_spaced,
    most_influential,
    smaller_config,
)
from edge_distill_export.bundle import check_destination, publish, staged
from edge_distill_export.checkpoint import Checkpoint, load_checkpoint
from edge_distill_export.grid import BLOCK_SIZE
from edge_distill_export.progress import stage
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from transformers import PreTrainedModel

    from edge_distill_export.calibration import Text

__all__ = ["Student", "init_student"]

LINEAGE = "init_student.json"
_FEWEST_TEXTS = 8
_MOST_TEXTS = 64


@dataclass(frozen=True)
class Student:
    """A student in its place."""

    path: str
    teacher: str
    parameters: int
    teacher_parameters: int
    layers: tuple[int, ...]
    """The teacher's layers that it was made from; of a new model, the layers whose settings it has."""
    ffn: int
    hidden: int
    how: str
    """"copied", "cut" or "new"."""
    influence: tuple[float, ...]
    """The block influence of each of the teacher's layers; empty unless measured."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        share = self.parameters / self.teacher_parameters
        console.print(
            f"{self.how}: {len(self.layers)} layers, feed-forward {self.ffn}, hidden {self.hidden}; "
            f"{self.parameters / 1e6:.1f}M parameters, {share:.0%} of {self.teacher}"
        )
        if self.how == "cut":
            console.print(f"layers {', '.join(map(str, self.layers))}")
        console.print(self.path)


def init_student(
    teacher: Annotated[str, "A Hugging Face directory, a PEFT adapter, a .gguf file, or a hub id"],
    *,
    out: Annotated[Path, "The folder to write the student into; must not exist"],
    layers: Annotated[int | None, "Keep so many layers"] = None,
    ffn: Annotated[int | None, "Keep so many feed-forward channels in each layer"] = None,
    hidden: Annotated[int | None, "The hidden size of a new model; needs --fresh"] = None,
    fresh: Annotated[bool, "A new model with random weights and the teacher's tokenizer"] = False,
    measure: Annotated[
        bool, "Keep what matters on text; otherwise evenly spaced layers, channels by their weights"
    ] = False,
    traces: Annotated[Path | None, "Traces (JSON Lines) to measure on; by default built-in problems"] = None,
    think: Annotated[
        bool, "Give it a chat form with reasoning between <think> and </think> (ChatML)"
    ] = False,
    seed: Annotated[int, "Of the weights of a new model"] = 0,
) -> Student:
    """Make the student that distillation trains, as a Hugging Face directory.

    Without layers, ffn and fresh it is a copy, in float32. The hidden size of a teacher cannot be cut: every matrix
    and norm reads the whole hidden state, and a projection (SliceGPT, Ashkboos et al. 2024) takes the norms' weights
    into the matrices, which unties tied embeddings and leaves the families that the export knows.
    """
    check_destination(out, force=False)
    if traces is not None and not measure:
        raise InputError(
            "unused-traces", "--traces is only read for --measure", "add --measure, or leave it out"
        )
    with stage("Loading the teacher"):
        source = load_checkpoint(teacher)
    if think:
        set_thinking_form(source.tokenizer)
    config = source.config
    count = _within("layers", layers, config.num_hidden_layers, 1, fresh)
    width = _within("ffn", ffn, config.intermediate_size, BLOCK_SIZE, fresh)
    influence: list[float] = []
    if fresh:
        if measure:
            raise InputError(
                "unused-measure", "--measure says what to cut, and --fresh cuts nothing", "leave one out"
            )
        kept = _spread(config.num_hidden_layers, count)
        student = _new(source, kept, width, hidden, seed)
    elif hidden is not None:
        raise InputError(
            "hidden-needs-fresh",
            f"a hidden size of {hidden} was asked for, the teacher has {config.hidden_size}, which cannot be cut",
            "add --fresh, or cut --layers and --ffn",
        )
    else:
        texts = _texts(source, traces) if measure else None
        kept, influence = _choose_layers(source.model, count, texts)
        channels = _choose_channels(source.model, kept, width, texts)
        student = cut(source.model, kept, channels)
    whole = count == config.num_hidden_layers and width == config.intermediate_size
    result = Student(
        path=str(out),
        teacher=source.name,
        parameters=student.num_parameters(),
        teacher_parameters=source.model.num_parameters(),
        layers=tuple(kept),
        ffn=width,
        hidden=student.config.hidden_size,
        how="new" if fresh else "copied" if whole else "cut",
        influence=tuple(influence),
    )
    _save(student, source, result, out)
    return result


def _within(name: str, value: int | None, teacher: int, step: int, fresh: bool) -> int:
    """An option's value, or the teacher's; a new model may be larger than the teacher."""
    if value is None:
        return teacher
    if value < step or value % step or (value > teacher and not fresh):
        kind = f"a multiple of {step}" if step > 1 else "a whole number"
        raise InputError(
            f"bad-{name}",
            f"--{name} is {value}",
            f"take {kind} from {step}" + (f" to {teacher}" if not fresh else ""),
        )
    return value


def _spread(layers: int, count: int) -> tuple[int, ...]:
    """For each of `count` new layers, the teacher's layer whose kind (sliding window, rope) it has."""
    return tuple(index % layers for index in range(count))


def _new(source: Checkpoint, kept: Sequence[int], ffn: int, hidden: int | None, seed: int) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    if hidden is not None and (hidden < BLOCK_SIZE or hidden % BLOCK_SIZE):
        raise InputError("bad-hidden", f"--hidden is {hidden}", f"take a multiple of {BLOCK_SIZE}")
    config = smaller_config(source.config, kept, ffn, hidden)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    student.config.architectures = source.config.architectures
    student.generation_config = source.model.generation_config
    return student.eval()


def _choose_layers(
    model: PreTrainedModel, count: int, texts: Sequence[Text] | None
) -> tuple[tuple[int, ...], list[float]]:
    total = model.config.num_hidden_layers
    if texts is None:
        return evenly_spaced(total, count), []
    with stage("Measuring the influence of layers"):
        influence = block_influence(model, texts)
    return most_influential(influence, count), influence


def _choose_channels(
    model: PreTrainedModel, layers: Sequence[int], width: int, texts: Sequence[Text] | None
) -> list[torch.Tensor]:
    """The feed-forward channels to keep in each of the layers, ascending."""
    import torch

    from edge_distill_export.activations import importance_matrix

    if width == model.config.intermediate_size:
        return [torch.arange(width)] * len(layers)
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in layers]
    squares = {}
    if texts is not None:
        with stage("Measuring the importance of channels", len(names)) as advance:
            squares = importance_matrix(model, texts, names, advance)
    kept = []
    for layer, name in zip(layers, names, strict=True):
        scores = channel_scores(model, layer, squares.get(name))
        kept.append(scores.topk(width).indices.sort().values)
    return kept


def _texts(source: Checkpoint, traces: Path | None) -> list[Text]:
    """Texts to measure on: those of a file, or worked solutions of the built-in problems that fit the context."""
    from edge_distill_export.artifact import prepare
    from edge_distill_export.calibration import builtin_traces, read_traces, render_trace, render_traces

    prepared = prepare(source, None)
    tokenizer, context = source.tokenizer, prepared.context_length
    if traces is not None:
        return render_traces(read_traces(traces), prepared.style, tokenizer, context)
    texts: list[Text] = []
    for trace in builtin_traces("calibration"):
        try:
            texts.append(render_trace(trace, prepared.style, tokenizer, context))
        except InputError:
            continue
        if len(texts) == _MOST_TEXTS:
            break
    if len(texts) < _FEWEST_TEXTS:
        raise InputError(
            "context-too-short",
            f"{len(texts)} built-in problems fit a context of {context} tokens, {_FEWEST_TEXTS} are needed",
            "give traces of your own with --traces",
        )
    return texts


def _save(student: PreTrainedModel, source: Checkpoint, result: Student, out: Path) -> None:
    """Write the directory beside its place and rename it: it is complete or absent."""
    with stage("Writing the student"), staged(out) as directory:
        student.save_pretrained(directory)
        source.tokenizer.save_pretrained(directory)
        lineage = {**result.to_dict(), "lineage": source.lineage}
        lineage["path"] = out.name
        (directory / LINEAGE).write_text(json.dumps(lineage, indent=2), encoding="utf-8")
        publish(directory, out)
