"""Sibling tasks: families of reasoning-gym near to those that a student was trained on, with the same kind of answer.

Reasoning that was transferred shows on tasks that take the same operations in another dress; a memorized form of
text does not. A family that was trained on is nobody's sibling.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["SIBLINGS", "family_of_spec", "siblings_of"]

# All of them have a number as their answer.
SIBLINGS: dict[str, tuple[str, ...]] = {
    "basic_arithmetic": ("chain_sum", "products"),
    "chain_sum": ("decimal_chain_sum", "basic_arithmetic"),
    "decimal_chain_sum": ("chain_sum",),
    "gcd": ("lcm",),
    "gsm_symbolic": ("leg_counting", "aiw"),
    "lcm": ("gcd",),
    "leg_counting": ("gsm_symbolic", "aiw"),
    "products": ("chain_sum", "basic_arithmetic"),
    "simple_equations": ("simple_geometry", "basic_arithmetic"),
}


def family_of_spec(spec: str) -> str | None:
    """`chain_sum` of `task:chain_sum?min_terms=3`; None for files and data sets."""
    kind, _, rest = spec.partition(":")
    return rest.partition("?")[0] if kind == "task" else None


def siblings_of(tasks: Iterable[str]) -> tuple[str, ...]:
    """The siblings of tasks as `task:FAMILY`, each once; none of files and data sets."""
    families = [family for spec in tasks if (family := family_of_spec(spec))]
    found = [sibling for family in families for sibling in SIBLINGS.get(family, ())]
    return tuple(f"task:{name}" for name in dict.fromkeys(found) if name not in families)
