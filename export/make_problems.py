"""Write the built-in problems: word problems with worked solutions from reasoning-gym's `gsm_symbolic`.

    pip install reasoning-gym==0.1.25 && python export/make_problems.py

Calibration and held-out problems come from different templates, so that no held-out sentence is ever
seen in calibration. The problems are GSM-symbolic's (Apache-2.0, as reasoning-gym is).
"""

import json
from pathlib import Path

SUFFIX = " Give the result as your final answer. Do not include units."
SIZES = {"calibration": 128, "heldout": 32}


def template_of(item: dict) -> tuple[str, ...]:
    """The names of the variables identify the template that an item was made from."""
    return tuple(item["metadata"]["variables"])


def trace_of(item: dict) -> dict:
    problem = item["question"].removesuffix(SUFFIX)
    reasoning = item["metadata"]["answer_cot"].rsplit("####", 1)[0].strip()
    content = f"The answer is {item['answer']}."
    return {
        "id": f"gsm_symbolic-{item['metadata']['source_index']}",
        "task": "gsm_symbolic",
        "problem": problem,
        "messages": [
            {"role": "user", "content": problem},
            {"role": "assistant", "reasoning_content": reasoning, "content": content},
        ],
        "gold": item["answer"],
    }


def main() -> None:
    import reasoning_gym

    items = list(reasoning_gym.create_dataset("gsm_symbolic", size=600, seed=20))
    templates = sorted({template_of(item) for item in items})
    split = {template: ("heldout" if i % 4 == 0 else "calibration") for i, template in enumerate(templates)}
    folder = Path(__file__).parent / "edge_distill_export" / "problems"
    for name, size in SIZES.items():
        seen: dict[tuple[str, ...], int] = {}
        chosen = []
        limit = -(-size // sum(part == name for part in split.values()))
        for item in items:
            template = template_of(item)
            if split[template] == name and seen.get(template, 0) < limit and len(chosen) < size:
                seen[template] = seen.get(template, 0) + 1
                chosen.append(json.dumps(trace_of(item), ensure_ascii=False))
        (folder / f"{name}.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
        print(f"{name}: {len(chosen)} problems from {len(seen)} templates")


if __name__ == "__main__":
    main()
