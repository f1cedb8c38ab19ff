"""A trained checkpoint in memory: float32 on the CPU, complete, finite, with its tokenizer.

Input is a Hugging Face directory, a PEFT adapter directory (merged onto its base), a GGUF file (dequantized) or a
hub id. Nothing in it is trusted; see `checkpoint_files.py`.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill_export.checkpoint_files import (
    ADAPTER,
    check_adapter,
    check_directory,
    check_gguf,
    weight_files,
)
from edge_distill_export.families import family_of
from edge_distill_export.onednn import multiply_by_onednn
from edge_distill_runtime.errors import EdgeDistillError, InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from edge_distill_export.gguf_vocab import Vocabulary

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAX_ADAPTERS = 4  # adapters on adapters


@dataclass(frozen=True)
class Checkpoint:
    """A model ready to be quantized."""

    model: PreTrainedModel
    """float32, on the CPU, in eval mode, all weights finite."""
    tokenizer: PreTrainedTokenizerFast
    name: str
    lineage: dict[str, Any]
    """Where it came from: kind of source, file names and their SHA-256, the adapter's base."""

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    @cached_property
    def gguf_vocabulary(self) -> Vocabulary:
        """Of all its GGUF files: found by trying in libllama, which takes a second."""
        from edge_distill_export.gguf_vocab import choose_vocabulary

        rows = self.model.get_input_embeddings().weight.shape[0]
        architecture = family_of(self.config).gguf_architecture
        return choose_vocabulary(self.tokenizer, rows, self.name, architecture)


def load_checkpoint(reference: str | Path, *, _depth: int = 0) -> Checkpoint:
    """Load and check a checkpoint; raises `InputError` for whatever is missing, damaged or hostile.

    From then on torch multiplies float32 matrices with oneDNN, where that is as exact (`multiply_by_onednn`).
    """
    path = _resolve(str(reference))
    multiply_by_onednn()
    try:
        if path.is_file():
            checkpoint = _load_gguf(path)
        elif (path / "adapter_config.json").exists():
            checkpoint = _load_adapter(path, _depth)
        else:
            checkpoint = _load_directory(path)
    except (EdgeDistillError, KeyboardInterrupt):
        raise
    except Exception as exc:
        # Foreign errors are translated here, once: safetensors, tokenizers and transformers raise many kinds.
        reason = str(exc).strip().split("\n")[0][:300] or type(exc).__name__
        raise InputError(
            "unreadable-checkpoint", f"{path} cannot be loaded: {reason}", "check the files"
        ) from exc
    _check(checkpoint)
    return checkpoint


def read_config(reference: str | Path) -> tuple[PretrainedConfig, Path]:
    """The configuration alone, for planning, and the path that it came from; no weights are read."""
    from transformers import AutoConfig

    path = _resolve(str(reference))
    if path.is_file():
        check_gguf(path)
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False), path
    for _ in range(_MAX_ADAPTERS):
        if not (path / "adapter_config.json").exists():
            break
        path = _base_of(path, check_adapter(path))
    check_directory(path)
    return AutoConfig.from_pretrained(path, trust_remote_code=False), path


def source_files(reference: str | Path) -> list[Path]:
    """The files that decide what a checkpoint says: weights, settings and tokenizer, an adapter's bases included."""
    path = _resolve(str(reference))
    files: list[Path] = []
    for _ in range(_MAX_ADAPTERS):
        if path.is_file() or not (path / "adapter_config.json").exists():
            break
        config = check_adapter(path)
        files += [path / ADAPTER, path / "adapter_config.json", *_settings(path)]
        path = _base_of(path, config)
    return files + ([path] if path.is_file() else [*weight_files(path), *_settings(path)])


def _settings(directory: Path) -> list[Path]:
    patterns = ("config.json", "generation_config.json", "*token*.json", "vocab.json", "chat_template*")
    return sorted({path for pattern in patterns for path in directory.glob(pattern) if path.is_file()})


def _resolve(reference: str) -> Path:
    """A local path, or the folder to which the hub's files were downloaded."""
    path = Path(reference).expanduser()
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(reference) or reference.startswith((".", "/", "~")):
        raise InputError(
            "missing-checkpoint",
            f"{reference} does not exist",
            "give a model directory, a .gguf file or a hub id",
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(reference, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"])
        )
    except Exception as exc:
        reason = str(exc).strip().split("\n")[0][:200] or type(exc).__name__
        raise InputError(
            "missing-checkpoint",
            f"{reference} is no local path, and could not be downloaded: {reason}",
            "check the path, or the network",
        ) from exc


def _load_directory(path: Path) -> Checkpoint:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_directory(path)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    family_of(config)
    model, report = AutoModelForCausalLM.from_pretrained(
        path,
        config=config,
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    _check_keys(path, report)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    files = weight_files(path)
    lineage = {"kind": "checkpoint", "name": path.resolve().name, "weights": _hashes(files)}
    return Checkpoint(model.eval(), tokenizer, path.resolve().name, lineage)


def _check_keys(path: Path, report: dict[str, Any]) -> None:
    """Transformers fills missing weights at random and drops surplus ones; neither may happen here."""
    for kind, remedy in (
        ("missing_keys", "the file is incomplete, or config.json describes a larger model"),
        ("unexpected_keys", "config.json describes a smaller model"),
        ("mismatched_keys", "config.json does not fit these weights"),
    ):
        if names := sorted(str(name) for name in report.get(kind, ())):
            raise InputError(
                kind.replace("_", "-"),
                f"{path} has {len(names)} {kind.replace('_', ' ')}, the first is {names[0]}",
                remedy,
            )


def _load_adapter(path: Path, depth: int) -> Checkpoint:
    from peft import PeftModel
    from transformers import AutoTokenizer

    if depth >= _MAX_ADAPTERS:
        raise InputError(
            "adapter-loop", f"{path} stands on more than {_MAX_ADAPTERS} adapters", "merge them first"
        )
    base = load_checkpoint(_base_of(path, check_adapter(path)), _depth=depth + 1)
    tokenizer = base.tokenizer
    if (path / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of missing keys, which are an error here
        with_adapter = PeftModel.from_pretrained(base.model, path, is_trainable=False, use_safetensors=True)
    _check_adapter_keys(path, with_adapter)
    model = with_adapter.merge_and_unload(safe_merge=True)
    lineage = {"kind": "adapter", "name": path.resolve().name, "weights": _hashes([path / ADAPTER])}
    return Checkpoint(model.eval(), tokenizer, path.resolve().name, {**lineage, "base": base.lineage})


def _base_of(path: Path, config: dict[str, Any]) -> Path:
    """The adapter's base: as named, or beside the adapter."""
    name = config["base_model_name_or_path"]
    beside = path / name
    return beside if not Path(name).is_absolute() and beside.exists() else _resolve(name)


def _check_adapter_keys(path: Path, model: Any) -> None:
    """PEFT skips adapter weights that fit no layer; a file with other layers must not merge to nothing."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    with safe_open(path / ADAPTER, framework="pt") as file:
        names = list(file.keys())
    # PEFT also saves whole embeddings when the vocabulary may have changed
    found = {name for name in names if not name.endswith(("embed_tokens.weight", "lm_head.weight"))}
    if different := sorted(expected ^ found):
        raise InputError(
            "adapter-mismatch",
            f"{path / ADAPTER} and its base differ in {len(different)} weights, the first is {different[0]}",
            "use the base model that the adapter was trained on",
        )


def _load_gguf(path: Path) -> Checkpoint:
    import torch
    from transformers import AutoModelForCausalLM

    from edge_distill_export.gguf_vocab import tokenizer_from_gguf

    check_gguf(path)
    config, _ = read_config(path)
    family_of(config)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=config, dtype=torch.float32, trust_remote_code=False
    )
    # What transformers leaves of the file's quantization would make it refuse to save or to train.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    name = path.stem
    lineage = {"kind": "gguf", "name": path.name, "weights": _hashes([path])}
    return Checkpoint(model.eval(), tokenizer_from_gguf(path), name, lineage)


def _hashes(files: list[Path]) -> dict[str, str]:
    """SHA-256 by file name; links are followed, as hub caches are made of them."""
    hashes = {}
    for path in files:
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _check(checkpoint: Checkpoint) -> None:
    """What every later stage relies on: a known family, finite weights, a vocabulary that fits."""
    import torch

    family_of(checkpoint.config)
    tokenizer = checkpoint.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "slow-tokenizer", f"{checkpoint.name} has no fast tokenizer", "save a tokenizer.json"
        )
    rows = checkpoint.model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values(), default=-1) + 1
    if highest > rows:
        raise InputError(
            "vocabulary-too-large",
            f"the tokenizer has {highest} tokens, the embedding {rows} rows",
            "resize the embedding: model.resize_token_embeddings(len(tokenizer))",
        )
    for name, weight in checkpoint.model.named_parameters():
        if not torch.isfinite(weight).all():
            raise InputError(
                "not-finite", f"{name} holds NaN or Inf", "the training diverged: take an earlier one"
            )


__all__ = ["Checkpoint", "load_checkpoint", "read_config", "source_files"]
