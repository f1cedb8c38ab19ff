"""From a path to an open model: a bundle, a bare GGUF file or an onnxruntime-genai folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_distill_runtime.bundles.found import Found, Texts, combine_hashes
from edge_distill_runtime.bundles.manifest import MANIFEST_NAME, Manifest, read_manifest, verify_files
from edge_distill_runtime.engines.allocator import give_back_freed_memory
from edge_distill_runtime.engines.backend import Backend
from edge_distill_runtime.engines.huge_pages import in_huge_pages
from edge_distill_runtime.engines.kv_cache import choose_precision, token_bytes
from edge_distill_runtime.engines.machine import address_space_left, memory_limit, usable_cpus
from edge_distill_runtime.engines.memory import cache_bytes, needed_memory
from edge_distill_runtime.errors import BundleError, InputError, ResourceError
from edge_distill_runtime.text.detokenizer import Detokenizer, load_tokenizer

__all__ = ["Opened", "find", "open_model"]

_OPTIONS = ("cache_tokens", "own_caches")


@dataclass(frozen=True)
class Opened:
    """An engine with what it takes to speak text with it."""

    manifest: Manifest
    backend: Backend
    tokenizer: Any
    """A `tokenizers.Tokenizer`."""
    detokenizer: Detokenizer
    model_hash: str
    """Lower-case hexadecimal SHA-256 of the model's files."""
    notes: tuple[str, ...]
    """What a person should know: settings that were missing or could not be used."""
    kv_cache: str
    """Precision of the keys and values."""


def open_model(
    path: Path | str,
    *,
    context: int | None = None,
    threads: int | None = None,
    backend_options: Mapping[str, Any] | None = None,
    isolate: bool = False,
    kv_cache: str | None = None,
) -> Opened:
    """Check what lies at `path` and open it; `load` describes the parameters.

    Without `context`, a bundle opens with all that it was made for, anything else with at most 4,096 tokens.
    """
    try:
        return _open(Path(path), context, threads, backend_options or {}, isolate, kv_cache)
    except MemoryError as exc:
        raise ResourceError(
            "memory",
            f"memory ran out while {path} was opened, {(address_space_left() or 0) >> 20} MiB are left",
            "raise the limit of this process, or load a smaller model",
        ) from exc


def _open(
    path: Path,
    context: int | None,
    threads: int | None,
    options: Mapping[str, Any],
    isolate: bool,
    kv_cache: str | None,
) -> Opened:
    found = find(path, isolate=isolate)
    manifest = found.manifest
    context = found.default_context if context is None else context
    if not 1 <= context <= manifest.context_length:
        raise InputError(
            "bad-context",
            f"context {context} was asked for, {manifest.name} was made for {manifest.context_length} tokens",
            f"ask for 1 to {manifest.context_length}, or export with a larger --context",
        )
    if threads is not None and not 1 <= threads <= 1024:
        raise InputError("bad-threads", f"{threads} threads were asked for", "ask for 1 to 1024")
    cache_tokens, own_caches = _read_options(options, context)
    precision = choose_precision(manifest.format, manifest.kv, kv_cache, manifest.kv_cache)
    memory = _check_memory(found, context, cache_tokens or context, precision)
    texts = found.read_texts()
    give_back_freed_memory()  # half of what reading a tokenizer takes, before the weights come
    backend = _open_backend(
        found,
        context,
        threads or usable_cpus(),
        cache_tokens,
        precision,
        own_caches,
        memory if isolate else None,
    )
    if backend.vocab_size != manifest.vocab_size:
        backend.close()
        raise BundleError(
            "wrong-vocabulary",
            f"the model computes {backend.vocab_size} logits, the manifest says {manifest.vocab_size}",
            "export the bundle again",
        )
    return Opened(
        manifest, backend, texts.tokenizer, texts.detokenizer, texts.model_hash, found.notes, precision
    )


def find(path: Path, *, isolate: bool = False) -> Found:
    """What lies at `path`, its settings read and checked, no weight loaded; `InputError` when it is no model."""
    if path.is_dir():
        from edge_distill_runtime.bundles.genai_folder import CONFIG_NAME, find_genai_folder

        if (path / MANIFEST_NAME).exists() or not (path / CONFIG_NAME).exists():
            return _find_bundle(path)
        return find_genai_folder(path)
    if path.suffix.lower() == ".gguf":
        from edge_distill_runtime.bundles.bare_gguf import find_gguf

        return find_gguf(path, isolate=isolate)
    raise InputError(
        "no-bundle",
        f"{path} is no bundle directory, onnxruntime-genai folder or .gguf file",
        "give a folder made by edge-distill export",
    )


def _find_bundle(directory: Path) -> Found:
    manifest = read_manifest(directory)
    model_path = directory / manifest.model_file
    model_files = {
        entry.path: entry for entry in manifest.files if entry.path.startswith(manifest.model_file)
    }

    def read_texts() -> Texts:
        verify_files(directory, manifest)
        if manifest.format == "gguf":
            _check_layout(model_path, manifest)
        markers = manifest.reasoning
        keep = (markers.open, markers.close) if markers else ()
        tokenizer, detokenizer = load_tokenizer(directory / "tokenizer.json", keep)
        hashes = {name: entry.sha256 for name, entry in model_files.items()}
        return Texts(tokenizer, detokenizer, combine_hashes(hashes))

    return Found(
        manifest=manifest,
        model_path=model_path,
        model_bytes=sum(entry.size for entry in model_files.values()),
        tokenizer_bytes=next(entry.size for entry in manifest.files if entry.path == "tokenizer.json"),
        default_context=manifest.context_length,
        notes=(),
        read_texts=read_texts,
    )


def _check_layout(path: Path, manifest: Manifest) -> None:
    from edge_distill_runtime.bundles.gguf_check import kv_layout, validate_gguf

    if (layout := kv_layout(validate_gguf(path))) != manifest.kv:
        raise BundleError(
            "wrong-cache",
            f"the model's cache is {layout}, the manifest says {manifest.kv}",
            "export it again",
        )


def _read_options(options: Mapping[str, Any], context: int) -> tuple[int | None, bool]:
    """The options `cache_tokens` and `own_caches`, which ONNX sequences have anyway."""
    if unknown := sorted(options.keys() - set(_OPTIONS)):
        raise InputError(
            "bad-backend-option",
            f"the backend option {unknown[0]!r} is unknown",
            f"known: {', '.join(_OPTIONS)}",
        )
    tokens = options.get("cache_tokens")
    if tokens is not None and (type(tokens) is not int or not context <= tokens < 1 << 31):
        raise InputError(
            "bad-cache-tokens",
            f"cache_tokens is {tokens!r}, the context is {context} tokens",
            f"give an integer from {context} to {(1 << 31) - 1}",
        )
    own = options.get("own_caches", False)
    if type(own) is not bool:
        raise InputError("bad-own-caches", f"own_caches is {own!r}", "give True or False")
    return tokens, own


def _check_memory(found: Found, context: int, cache_tokens: int, kv_cache: str) -> int:
    """Bytes that the model will take, or `ResourceError` when this process may not have so many."""
    manifest = found.manifest
    token = token_bytes(manifest.kv, kv_cache)
    need = needed_memory(
        manifest.format,
        model_bytes=found.model_bytes,
        cache_bytes=cache_bytes(manifest.format, token, cache_tokens),
        tokenizer_bytes=found.tokenizer_bytes,
        vocab_size=manifest.vocab_size,
    )
    # libllama does not survive an allocation that fails
    limits = [limit for limit in (memory_limit(), address_space_left()) if limit is not None]
    if limits and need > (limit := min(limits)):
        raise ResourceError(
            "memory",
            f"{manifest.name} with a context of {context} needs {need >> 20} MiB, "
            f"this process may have {limit >> 20} MiB",
            f"load with a smaller context: a token takes {token} bytes",
        )
    return need


def _open_backend(
    found: Found,
    context: int,
    threads: int,
    cache_tokens: int | None,
    kv_cache: str,
    own_caches: bool,
    isolated_memory: int | None,
) -> Backend:
    manifest, path = found.manifest, found.model_path
    if isolated_memory is not None:
        from edge_distill_runtime.engines.isolated import IsolatedBackend

        # twice the file: ONNX Runtime holds a tied embedding in two forms
        return IsolatedBackend(
            path,
            format=manifest.format,
            context=context,
            threads=threads,
            kv=manifest.kv,
            cache_tokens=cache_tokens,
            kv_cache=kv_cache,
            own_caches=own_caches,
            memory_bytes=isolated_memory + found.model_bytes,
        )
    with in_huge_pages():
        if manifest.format == "gguf":
            from edge_distill_runtime.engines.llama import LlamaBackend

            return LlamaBackend(
                path,
                context=context,
                threads=threads,
                cache_tokens=cache_tokens,
                kv_cache=kv_cache,
                own_caches=own_caches,
            )
        from edge_distill_runtime.engines.onnx import OnnxBackend

        return OnnxBackend(
            path, context=context, threads=threads, head_dim=manifest.kv.head_dim, cache_tokens=cache_tokens
        )
