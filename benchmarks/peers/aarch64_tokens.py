"""What aarch64_check.sh runs on both machines: greedy tokens, and logits on the same text.

aarch64_tokens.py run BUNDLE OUT.npz [REFERENCE.npz]
aarch64_tokens.py compare REFERENCE.npz OTHER.npz
"""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import numpy as np

QUESTION = "A tray holds 28 rolls. How many rolls are on 4 trays?"
TOKENS = 16


def run(bundle: str, out: str, reference: str | None = None) -> None:
    """Greedy tokens of this machine, and its logits on the prompt and the reference's (else its own) tokens."""
    from importlib.metadata import version

    from edge_distill_runtime import load

    with load(bundle, threads=1) as model:
        generation = model.generate(QUESTION, max_tokens=TOKENS, temperature=0, prompt_lookup=False)
        prompt = model.encode(QUESTION)
        text = np.load(reference)["text"].tolist() if reference else [*prompt, *generation.tokens]
        logits = np.concatenate([rows.copy() for rows in model.backend.teacher_force(text)])
    names = ("numpy", "onnxruntime", "tokenizers")
    about = {"machine": platform.machine(), "python": platform.python_version()}
    about |= {name: version(name) for name in names}
    with open(out, "wb") as file:
        np.savez(
            file, about=json.dumps(about), text=text, prompt=prompt, tokens=generation.tokens, logits=logits
        )


def compare(reference: str, other: str) -> None:
    a, b = dict(np.load(reference)), dict(np.load(other))
    assert a["prompt"].tolist() == b["prompt"].tolist(), "the tokenizers differ"
    p, q = log_softmax(a["logits"]), log_softmax(b["logits"])
    kl = (np.exp(p) * (p - q)).sum(-1)
    same = [x == y for x, y in zip(a["tokens"].tolist(), b["tokens"].tolist(), strict=False)]
    result: dict[str, Any] = {
        "machines": [json.loads(str(a["about"])), json.loads(str(b["about"]))],
        "tokens": [a["tokens"].tolist(), b["tokens"].tolist()],
        "same_tokens": same.index(False) if False in same else len(same),
        "positions": len(kl),
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
        "top1": float((p.argmax(-1) == q.argmax(-1)).mean()),
    }
    for about, tokens in zip(result["machines"], result["tokens"], strict=True):
        print(f"{about['machine']:8} onnxruntime {about['onnxruntime']}: {tokens}")
    print(f"greedy tokens alike from the first on: {result['same_tokens']} of {TOKENS}")
    print(
        f"teacher-forced, {len(kl)} positions: mean KL {kl.mean():.5f}, largest {kl.max():.4f}, "
        f"the same top token {result['top1']:.1%}"
    )
    print(json.dumps(result))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(*sys.argv[2:])
    else:
        compare(*sys.argv[2:])
