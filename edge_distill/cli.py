"""The command line: a table of verbs, each a function in its own module, imported when it is called.

A verb's signature is its command line. `Annotated[Path, "help text"]` makes a parameter visible here:
positional parameters become arguments, keyword-only ones options. A parameter without help text is for Python
callers; one named `console` receives the console for output that must appear while the verb works (None under
`--json`). A verb returns a frozen dataclass with `to_dict()`, its JSON document, and `render(console)`, the
same for people.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from rich.console import Console

    from edge_distill_runtime.errors import EdgeDistillError

SCHEMA_VERSION = 1
INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE


@dataclass(frozen=True)
class Verb:
    """One line of the table."""

    function: str
    """module:function, imported when the verb is called."""
    help: str
    extra: str
    """The extra of the wheel that installs what the verb imports; empty when the base install does."""


VERBS = {
    "export": Verb(
        "edge_distill_export.export:export", "Turn a checkpoint into verified int4/int8 bundles", "export"
    ),
    "plan": Verb(
        "edge_distill_export.plan:plan", "Predict file size and peak memory of every target", "export"
    ),
    "inspect": Verb(
        "edge_distill_export.inspect:inspect", "Show what is inside a bundle or model file", "export"
    ),
    "verify": Verb("edge_distill_export.verify:verify", "Check a bundle's hashes and its parity", "export"),
    "run": Verb("edge_distill.run:run", "Ask a bundle a question and stream the answer", "export"),
    "serve": Verb("edge_distill.serve:serve", "Serve a bundle over OpenAI's HTTP interface", "serve"),
    "demo": Verb(
        "edge_distill.demo.story:demo", "Distil, export and measure a tiny student beside its teacher", "all"
    ),
    "demo smollm2": Verb(
        "edge_distill.demo.smollm2:demo", "Export, verify and ask a real model; print one table", "export"
    ),
    "traces": Verb(
        "edge_distill.traces.writing:traces", "Write a teacher's checked traces of problems", "distill"
    ),
    "traces stats": Verb("edge_distill.traces.stats:summarize", "Count what a file of traces holds", ""),
    "init-student": Verb(
        "edge_distill.distil.init_student:init_student",
        "Make the student that distillation trains: the teacher itself, one cut from it, or a fresh one",
        "export",
    ),
    "distill": Verb("edge_distill.distil.distill:distill", "Train a student by a recipe", "distill"),
    "evaluate": Verb(
        "edge_distill.evaluate.evaluate:evaluate",
        "Measure whether a student's reasoning was transferred",
        "all",
    ),
    "report": Verb(
        "edge_distill_bench.report.verb:report", "Turn a benchmark's results into one HTML page", "bench"
    ),
    "bench": Verb(
        "edge_distill.bench:bench", "Measure bundles against their teacher and student, with a gate", "bench"
    ),
    "compare": Verb(
        "edge_distill_bench.compare:compare", "Compare two benchmarks and fail on a regression", "bench"
    ),
    "env": Verb("edge_distill.env:env", "Print versions, CPU and memory for a bug report", ""),
}


class Result(Protocol):
    """What a verb returns."""

    def to_dict(self) -> dict[str, Any]: ...
    def render(self, console: "Console") -> None: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # onnxruntime reports every session to its maker, and so may libraries around it
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that is not UTF-8 must not end an export
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader went away: what is still buffered must not fail again when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as exc:
        return _report(exc, arguments)


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(_help(), file=sys.stderr)
        return 2
    words = _words(arguments)
    name, options = " ".join(arguments[:words]), arguments[words:]
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0
    if name == "--version":
        from importlib.metadata import version

        print(f"edge-distill {version('edge-distill')}")
        return 0
    if name not in VERBS:
        raise _unknown_verb(name)
    function = _load(VERBS[name])
    values = _parse(name, function, options)
    if values is None:  # --help
        return 0
    _call(function, values)
    return 0


def _words(arguments: list[str]) -> int:
    """How many of them name the verb: "traces stats" are two."""
    return 2 if " ".join(arguments[:2]) in VERBS else 1


def _help() -> str:
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {name:<{width}}{verb.help}" for name, verb in VERBS.items())
    return (
        "Usage: edge-distill VERB [ARGUMENTS] [OPTIONS]\n\n"
        "Distil a reasoning student, shrink it to int4/int8 ONNX and GGUF, prove that it still reasons.\n\n"
        f"Verbs:\n{verbs}\n\n"
        "`edge-distill VERB --help` shows a verb's options. Every verb takes --json."
    )


def _unknown_verb(name: str) -> Exception:
    from difflib import get_close_matches

    from edge_distill_runtime.errors import InputError

    matches = get_close_matches(name, VERBS, n=1)
    hint = f"did you mean {matches[0]}?" if matches else f"known verbs: {', '.join(VERBS)}"
    return InputError("unknown-verb", f"there is no verb {name!r}", hint)


def _load(verb: Verb) -> Callable[..., Result]:
    from importlib import import_module

    module, _, function = verb.function.partition(":")
    loaded: Callable[..., Result] = getattr(import_module(module), function)
    return loaded


def _parse(name: str, function: Callable[..., Result], options: list[str]) -> dict[str, Any] | None:
    """The verb's keyword arguments from the command line; None when `--help` was asked for and printed."""
    import inspect

    import typer

    # Console: the one type that a verb may name without importing it
    hints = get_type_hints(function, localns={"Console": Any}, include_extras=True)
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if get_origin(hints[parameter.name]) is not Annotated:
            continue
        kind, text = get_args(hints[parameter.name])
        flag = "--" + parameter.name.replace("_", "-")
        if kind == bool | None:  # yes, no, or neither
            flag += "/--no-" + flag.removeprefix("--")
        option = parameter.kind is parameter.KEYWORD_ONLY
        declared = typer.Option(flag, help=text) if option else typer.Argument(help=text)
        parameters.append(parameter.replace(annotation=Annotated[kind, declared]))
    json_option = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
    parameters.append(
        inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=json_option)
    )

    def command(**values: Any) -> dict[str, Any]:
        return values

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(help=inspect.getdoc(function))(command)
    values = app(options, prog_name=f"edge-distill {name}", standalone_mode=False)
    return values if isinstance(values, dict) else None


def _call(function: Callable[..., Result], values: dict[str, Any]) -> None:
    import inspect
    from contextlib import redirect_stdout

    output = sys.stdout
    as_json = values.pop("json")
    console = None if as_json else _console()
    if "console" in inspect.signature(function).parameters:
        values["console"] = console
    with redirect_stdout(sys.stderr):  # what libraries print is not part of the result
        result = function(**values)
    if console is None:
        print(_document(result.to_dict()), file=output)
    else:
        result.render(console)


def _console() -> "Console":
    from rich.console import Console

    wide_enough = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(
        file=sys.stdout,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
        emoji=False,
        width=wide_enough,
    )


def _document(content: dict[str, Any]) -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, **_finite(content)}, indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """The same document with null where a number is infinite or NaN, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _report(exc: Exception, arguments: list[str]) -> int:
    """Print one line (and the JSON document when it was asked for); returns the exit code."""
    if os.environ.get("EDGE_DISTILL_DEBUG") == "1":
        import traceback

        traceback.print_exception(exc)
    error = _translate(exc, " ".join(arguments[: _words(arguments)]))
    line = re.sub(
        r"[\x00-\x1f\x7f-\x9f\s]+", " ", str(error)
    )  # one line, and no terminal codes from file names
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    print(f"\x1b[31merror:\x1b[0m {line}" if coloured else f"error: {line}", file=sys.stderr)
    if "--json" in arguments:
        content = {"code": error.code, "what": error.what, "hint": error.hint}
        data = {"data": error.data} if error.data else {}
        print(_document({"error": {**content, **data}}), flush=True)
    return error.exit_code


def _translate(exc: Exception, name: str) -> "EdgeDistillError":
    """Any exception as one of ours."""
    from edge_distill_runtime.errors import EdgeDistillError, InputError, MissingExtra

    if isinstance(exc, EdgeDistillError):
        return exc
    if isinstance(exc, ModuleNotFoundError) and exc.name and not exc.name.startswith("edge_distill"):
        extra = VERBS[name].extra if name in VERBS else ""
        package = f"edge-distill[{extra}]" if extra else "edge-distill"
        return MissingExtra(
            "missing-extra",
            f"{name} needs {exc.name.partition('.')[0]}, which is not installed",
            f'pip install "{package}"',
        )
    if "typer" in sys.modules:
        import typer

        if isinstance(exc, typer.TyperException):
            return InputError("usage", exc.format_message(), f"see edge-distill {name} --help")
    if isinstance(exc, OSError) and exc.strerror:
        place = f": {exc.filename}" if exc.filename else ""
        return EdgeDistillError("os-error", f"{exc.strerror}{place}")
    return EdgeDistillError(
        "internal-error",
        f"{type(exc).__name__}: {exc}",
        "this is a bug; EDGE_DISTILL_DEBUG=1 shows where, `edge-distill env` what to report with it",
    )
