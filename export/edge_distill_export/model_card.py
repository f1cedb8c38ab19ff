"""The README.md of a bundle: what it is, what was measured, how to run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge_distill_export.mixed import high_text
from edge_distill_export.repair_record import repair_text
from edge_distill_runtime.bundles.manifest import Manifest
from edge_distill_runtime.engines.kv_cache import default_token_bytes


def write_card(manifest: Manifest, size: int, directory: Path) -> None:
    """Write README.md beside the model; every number comes from `manifest` or is the model's `size` in bytes."""
    check: dict[str, Any] = manifest.verification
    rows = "\n".join(
        f"| {kind} | {part['tokens']:,} | {part['kl_mean']:.4f} | {part['kl_p99']:.3f} | {part['top1']:.3f} |"
        for kind in ("overall", "reasoning", "answer")
        if (part := check["parity"][kind])
    )
    types = ", ".join(f"{count} x {name}" for name, count in manifest.precision.tensor_types.items())
    choice = manifest.lineage.get("precision_choice")
    high = f"\n- 8 bits by measured sensitivity, 4 for the rest: {high_text(choice)}" if choice else ""
    repair = manifest.lineage.get("repair")
    learned = f"\n- Quantized, then repaired: {repair_text(repair)}" if repair else ""
    (directory / "README.md").write_text(
        f"""# {manifest.name}

{_METHODS[manifest.precision.method]} from `{manifest.lineage["checkpoint"]["name"]}` ({manifest.architecture},
{manifest.parameter_count / 1e6:.0f}M parameters) by edge-distill.

- Size: {size / 1e6:.1f} MB, {manifest.precision.bits_per_weight:.2f} bits per weight ({types}){high}{learned}
- Context: {manifest.context_length} tokens; a token takes {default_token_bytes(manifest):,} bytes of cache

## How far it is from the float32 checkpoint

Teacher-forced on {check["parity"]["texts"]} held-out reasoning traces that calibration never saw; KL divergence in
nats per token.

| tokens | count | mean KL | p99 KL | same likeliest token |
|---|---|---|---|---|
{rows}

Half of the traces go {check["parity"]["first_divergence"]:.0f} tokens or more before the likeliest token first
differs. Limit at export: mean KL {check["limit_kl"]}.

## Run it

```
pip install "edge-distill-runtime[{manifest.format}]"
```
```python
from edge_distill_runtime import load

with load({json.dumps(manifest.name)}) as model:
    print(model.generate("A tray holds 28 rolls. How many rolls are on 4 trays?").text)
```
{_ELSEWHERE[manifest.format]}""",
        encoding="utf-8",
    )


_METHODS = {
    "none": "Converted",
    "rtn": "Quantized by rounding to nearest",
    "gptq": "Quantized with GPTQ",
    "k-quant": "Quantized with llama.cpp's K-quants and an importance matrix",
}
_ELSEWHERE = {
    "gguf": "`model.gguf` also opens in llama.cpp and LM Studio, and in Ollama: `ollama create NAME -f Modelfile`.\n",
    "onnx": "The folder also opens in onnxruntime-genai: `onnxruntime_genai.Model(DIR)`.\n",
}
