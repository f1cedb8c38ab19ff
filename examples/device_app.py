"""The ears of a kitchen display: a sentence in, a checked command out, all on the device.

pip install "edge-distill-runtime[onnx,constrain]"
python device_app.py BUNDLE      # then say: the pasta needs eleven minutes
"""

import json
import signal
import sys
import threading

from edge_distill_runtime import AnswerFormat, EdgeDistillError, Model, ResourceError, load

PROPERTIES = {
    "action": {"enum": ["timer", "shopping", "none"]},
    "item": {"type": "string", "maxLength": 30},
    "minutes": {"type": "integer", "minimum": 0, "maximum": 600},
}
FORM = {"type": "object", "properties": PROPERTIES, "required": [*PROPERTIES], "additionalProperties": False}
EXAMPLES = {
    "the eggs want 8 minutes": '{"action": "timer", "item": "eggs", "minutes": 8}',
    "we are out of butter": '{"action": "shopping", "item": "butter", "minutes": 0}',
    "what a lovely evening": '{"action": "none", "item": "", "minutes": 0}',
}
LESSON = [
    {"role": role, "content": text}
    for example in EXAMPLES.items()
    for role, text in zip(("user", "assistant"), example, strict=True)
]


def understand(model: Model, sentence: str) -> dict | None:
    """The command in a sentence, None if Ctrl-C or the deadline came first; reasoning is shown dimmed."""
    stop, answer = threading.Event(), ""
    prompt, form = [*LESSON, {"role": "user", "content": sentence}], AnswerFormat.json_schema(FORM)
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    for event in model.stream(prompt, answer_format=form, temperature=0, deadline=60, cancel=stop):
        if event.kind == "reasoning":
            print(f"\033[2m{event.text}\033[0m", end="", flush=True)
        else:
            answer += event.text
    signal.signal(signal.SIGINT, before)
    return json.loads(answer) if event.finish_reason == "stop" else None


if __name__ == "__main__":
    try:
        try:
            model = load(sys.argv[1])
        except ResourceError as error:  # it says how much is needed and how much there is
            print(f"{error}\ntrying a short context", file=sys.stderr)
            model = load(sys.argv[1], context=512)
        model.cache_prefix(LESSON, disk=True)  # computed once, also for the next start
        for line in filter(str.strip, sys.stdin):
            print(json.dumps(understand(model, line.strip()) or "never mind"), flush=True)
    except EdgeDistillError as error:
        sys.exit(f"error: {error}")
