"""What a manifest says about the repair after quantization, for people; it may come from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def repair_text(record: Mapping[str, Any]) -> str:
    """Such as "40 steps of scales, 120 steps of integers; mean KL on other text 0.0441, then 0.0352"."""
    stages = record.get("stages")
    taken = [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    parts = [f"{stage.get('steps')} steps of {stage.get('stage')}" for stage in taken]
    before, after = (_number(record.get(key)) for key in ("deciding_kl_before", "deciding_kl"))
    return f"{', '.join(parts) or 'no steps'}; mean KL on other text {before}, then {after}"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
