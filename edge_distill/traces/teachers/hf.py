"""`hf:DIR`: a checkpoint, run by transformers in batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_distill.traces.teachers.markers import cut_at_stop, split_reasoning, tidy
from edge_distill.traces.teachers.teacher import Request, Sampling, Written, check_requests
from edge_distill_runtime.errors import BackendError, InputError, ResourceError
from edge_distill_runtime.text.chat import render

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from edge_distill_runtime.text.chat import ReasoningMarkers

__all__ = ["HuggingFaceTeacher", "TokenReader", "draw"]


@dataclass(frozen=True)
class _Prompt:
    index: int
    request: Request
    tokens: list[int]
    inside: bool
    """Whether it ends inside the reasoning."""
    limit: int
    """Most tokens to write: what was asked for, or what the context has room for."""


class HuggingFaceTeacher:
    """A model in bfloat16 on the first GPU, or in float32 on the CPU; see `open_teacher`.

    Each request draws from random numbers of its own, so that its text does not depend on what else is in its batch.
    What does, are the last bits of the logits: padding and the number of rows change the order in which they are
    summed, so that in rare cases a token whose probability lies at the edge of the draw comes out differently.
    """

    can_continue = True

    def __init__(self, reference: str, *, batch_size: int = 8) -> None:
        """Raises `InputError` for a checkpoint that is damaged or hostile; code in it is never run."""
        import torch
        from transformers import GenerationConfig

        from edge_distill_export.artifact import prepare
        from edge_distill_export.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(reference)
        self._context = checkpoint.config.max_position_embeddings
        source = prepare(checkpoint, self._context)
        self._style, self._stop_ids = source.style, source.stop_ids
        self._tokenizer = checkpoint.tokenizer
        self._reader = TokenReader(checkpoint.tokenizer, source.style.markers, source.stop_ids)
        self._batch_size = batch_size
        on_gpu = torch.cuda.is_available()
        self._device = torch.device("cuda" if on_gpu else "cpu")
        dtype = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32
        self._model: Any = checkpoint.model.to(self._device, dtype)
        # the checkpoint's own would add penalties and filters that no trace tells of
        self._model.generation_config = GenerationConfig()
        self.name = f"hf:{checkpoint.name}@{_short_hash([checkpoint.lineage, repr(self._style)])}"

    def write(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        """See `Teacher.write`; a batch at a time. A prompt that does not fit the context is that request's error."""
        check_requests(self, requests)
        if self._model is None:
            raise BackendError("closed", f"{self.name} is closed", "open it again")
        return self._results(requests, sampling)

    def close(self) -> None:
        """Free the model; may be called twice."""
        self._model = None

    def _results(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        prompts = []
        for index, request in enumerate(requests):
            try:
                prompts.append(self._prompt(index, request, sampling))
            except InputError as exc:
                yield index, Written("", "", "error", 0, str(exc))
        # rows of one length need no padding, and the longest first show early whether memory suffices
        prompts.sort(key=lambda prompt: (-prompt.limit, -len(prompt.tokens)))
        while prompts:
            limit = prompts[0].limit
            batch = [prompt for prompt in prompts[: self._batch_size] if prompt.limit == limit]
            del prompts[: len(batch)]
            for prompt, tokens in zip(batch, self._generate(batch, sampling), strict=True):
                yield prompt.index, self._written(prompt, tokens, sampling)

    def _prompt(self, index: int, request: Request, sampling: Sampling) -> _Prompt:
        style = self._style
        if style.chat is None:
            text = style.start + "".join(f"{turn['content']}\n" for turn in request.turns)
        else:
            text = render(style.chat, request.turns)
        inside = style.markers is not None and text.rstrip().endswith(style.markers.open)
        if request.reasoning and style.markers is not None:
            text += "" if inside else style.markers.open
            text += "" if text.endswith("\n") else "\n"
            inside = True
        text += request.reasoning
        tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        room = self._context - len(tokens)
        if not tokens or room < 1:
            raise InputError(
                "context-full",
                f"the prompt has {len(tokens)} tokens, the context {self._context}",
                "ask something shorter",
            )
        return _Prompt(index, request, tokens, inside, min(sampling.max_tokens, room))

    def _generate(self, batch: Sequence[_Prompt], sampling: Sampling) -> list[list[int]]:
        """What is written to each prompt, as token ids; a stop token and what follows it may be among them."""
        import torch
        from transformers import GenerationConfig

        longest = max(len(prompt.tokens) for prompt in batch)
        padding = self._stop_ids[0] if self._stop_ids else 0
        ids = torch.full((len(batch), longest), padding)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, longest - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
            mask[row, longest - len(prompt.tokens) :] = 1
        settings = GenerationConfig(
            max_new_tokens=batch[0].limit,
            do_sample=False,  # `_Draw` leaves one token to choose from
            eos_token_id=list(self._stop_ids) or None,
            pad_token_id=padding,
        )
        try:
            with torch.inference_mode():
                output = self._model.generate(
                    input_ids=ids.to(self._device),
                    attention_mask=mask.to(self._device),
                    generation_config=settings,
                    logits_processor=[_Draw(batch, sampling)],
                    stopping_criteria=self._stopping(batch, longest, sampling),
                )
        except torch.OutOfMemoryError as exc:
            raise ResourceError(
                "memory",
                f"{len(batch)} prompts of up to {longest} tokens did not fit the GPU",
                "ask fewer at once",
            ) from exc
        rows: list[list[int]] = output[:, longest:].tolist()
        return rows

    def _stopping(self, batch: Sequence[_Prompt], start: int, sampling: Sampling) -> list[Any]:
        """Ends the rows in which a stop string came."""
        import torch

        if not sampling.stop:
            return []

        def criterion(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            rows = zip(batch, ids[:, start:].tolist(), strict=True)
            texts = [self._reader.split(row, inside=prompt.inside) for prompt, row in rows]
            done = [cut_at_stop(*both, sampling.stop) is not None for both in texts]
            return torch.tensor(done, device=ids.device)

        return [criterion]

    def _written(self, prompt: _Prompt, row: list[int], sampling: Sampling) -> Written:
        continued = bool(prompt.request.reasoning)
        return self._reader.read(row, inside=prompt.inside, stop=sampling.stop, continued=continued)


@dataclass(frozen=True)
class TokenReader:
    """Reads what a student or teacher has generated."""

    tokenizer: PreTrainedTokenizerFast
    markers: ReasoningMarkers | None
    stop_ids: tuple[int, ...]

    def read(
        self, row: Sequence[int], *, inside: bool, stop: Sequence[str] = (), continued: bool = False
    ) -> Written:
        """A row of token ids; a stop token and what follows it may be among them. `inside`: as `split_reasoning`."""
        end = next((i for i, token in enumerate(row) if token in self.stop_ids), None)
        tokens = row[:end]
        reasoning, text = self.split(tokens, inside=inside)
        cut = cut_at_stop(reasoning, text, stop)
        reason = "length" if cut is None and end is None else "stop"
        return Written(*tidy(*(cut or (reasoning, text)), continued=continued), reason, len(tokens))

    def split(self, tokens: Sequence[int], *, inside: bool) -> tuple[str, str]:
        """Reasoning and answer."""
        # with special tokens, as markers often are
        text = self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        return split_reasoning(text, self.markers, inside=inside)


class _Draw:
    """A logits processor that draws each row's next token by itself and leaves only that one."""

    def __init__(self, batch: Sequence[_Prompt], sampling: Sampling) -> None:
        import torch

        self._sampling = sampling
        self._random = [torch.Generator().manual_seed(prompt.request.seed) for prompt in batch]

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        if scores.isnan().any():
            raise BackendError("not-finite", "the model computed NaN", "take another checkpoint")
        numbers = torch.stack([torch.rand((), generator=random) for random in self._random])
        tokens = draw(scores, numbers.to(scores.device), self._sampling)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


def draw(logits: torch.Tensor, numbers: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Token ids [batch] for logits [batch, vocab] and numbers [batch] from [0, 1), the likeliest tokens lying first.

    Nucleus sampling (Holtzman et al. 2020): the fewest tokens whose probabilities reach `top_p`.
    """
    import torch

    if sampling.temperature == 0:
        return logits.argmax(-1)
    shares, ids = (
        (logits.float() / sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    )
    before = shares.cumsum(-1) - shares
    shares = shares.where(before < sampling.top_p, 0.0)
    ends = shares.cumsum(-1)
    at = torch.searchsorted(ends, numbers[:, None] * ends[:, -1:], right=True)
    last = (shares > 0).sum(-1, keepdim=True) - 1
    return ids.gather(1, at.minimum(last))[:, 0]


def _short_hash(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
