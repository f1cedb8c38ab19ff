"""The report's drawings: which measures stand against which. A drawing without two points is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_distill_bench.report import numbers
from edge_distill_bench.report.curves import Band, Series, draw_curves, draw_intervals
from edge_distill_bench.report.entries import Entry
from edge_distill_bench.report.fronts import Point, draw_front, exact
from edge_distill_bench.report.scales import Axis
from edge_distill_bench.results import AccuracyCell, FidelityPart, Role, mean_and_deviation
from edge_distill_bench.statistics import Estimate, wilson

__all__ = ["Chart", "curve_charts", "fidelity_charts", "front_charts", "interval_charts", "speed_charts"]

RIGHT = Axis("right answers", "high", numbers.percent, log=False, floor=0, ceiling=1)
SIZE = Axis("size, MB", "low", floor=0)
SECONDS = Axis("time to answer", "low", lambda value: f"{value:.3g} s", floor=0)
KL = Axis("mean KL to the reference", "low", lambda value: f"{value:.3g}", floor=0)
SPEED = Axis("tokens/s", "high", log=False, floor=0)


@dataclass(frozen=True)
class Chart:
    """A drawing with its heading; `wide` is for screens, `narrow` for phones."""

    title: str
    note: str
    wide: str
    narrow: str


# -- fronts --------------------------------------------------------------------------------------------------


def front_charts(entries: Sequence[Entry]) -> list[Chart]:
    """Accuracy against size and against time to answer."""
    charts = [
        _front(entries, "Accuracy against size", "Megabytes of the model files.", SIZE, RIGHT, _size, _right),
        _front(
            entries,
            "Accuracy against time to answer",
            "From the text of a problem to the end of the answer.",
            SECONDS,
            RIGHT,
            lambda entry: entry.time_to_answer,
            _right,
        ),
    ]
    return [chart for chart in charts if chart]


def fidelity_charts(entries: Sequence[Entry]) -> list[Chart]:
    """KL against size, and by the kind of token."""
    note = "Nats for a token, teacher-forced."
    charts = [_front(entries, "KL against size", note, SIZE, KL, _size, _kl), _by_kind(entries)]
    return [chart for chart in charts if chart]


def _size(entry: Entry) -> Estimate:
    return exact(entry.artifact.size_bytes / 1e6)


def _right(entry: Entry) -> Estimate | None:
    return entry.cell.accuracy if entry.cell else None


def _kl(entry: Entry) -> Estimate | None:
    part = entry.artifact.fidelity.parts.get("all") if entry.artifact.fidelity else None
    return _kl_of(part) if part and part.mean_kl > 0 else None


def _kl_of(part: FidelityPart) -> Estimate:
    """With an interval that a logarithmic axis can hold."""
    low, high = part.mean_kl_interval or (part.mean_kl, part.mean_kl)
    return Estimate(part.mean_kl, max(low, part.mean_kl / 100), high)


def _front(
    entries: Sequence[Entry],
    title: str,
    note: str,
    x: Axis,
    y: Axis,
    across: Callable[[Entry], Estimate | None],
    up: Callable[[Entry], Estimate | None],
) -> Chart | None:
    found = [(entry, across(entry), up(entry)) for entry in entries]
    points = [
        Point(
            entry.name,
            one,
            other,
            group="peers" if entry.artifact.peer else "",
            colour=entry.colour,
            marker=entry.marker,
        )
        for entry, one, other in found
        if one is not None and other is not None
    ]
    if len(points) < 2:
        return None
    points.sort(key=lambda point: point.group)  # the first group's front is drawn in full
    if points[-1].group != points[0].group:
        note += " Dashed: models that other programs made."
    wide = draw_front(points, x=x, y=y, label=title, class_="wide")
    narrow = draw_front(points, x=x, y=y, label=title, width=340, height=340, class_="narrow")
    return Chart(title, note, wide, narrow)


# -- intervals -----------------------------------------------------------------------------------------------


def interval_charts(entries: Sequence[Entry]) -> list[Chart]:
    """What every model keeps of the fp32 student's accuracy, and of the teacher's."""
    roles: tuple[Role, ...] = ("student", "teacher")
    return [chart for role in roles if (chart := _kept(entries, role))]


def _kept(entries: Sequence[Entry], role: Role) -> Chart | None:
    bands = []
    for entry in entries:
        one = entry.comparison_with(role)
        if one is not None and one.retention is not None:
            said = numbers.interval(one.retention)
            bands.append(Band(entry.name, one.retention, said, entry.colour, entry.marker))
    if not bands:
        return None
    title = f"Kept of the {'fp32 student' if role == 'student' else 'teacher'}'s accuracy"
    axis = Axis("", "high", numbers.percent, log=False, floor=0)

    def draw(width: int, class_: str) -> str:
        return draw_intervals(bands, axis, label=title, reference=1.0, width=width, class_=class_)

    note = "Paired bootstrap, 95 %; the line is no change."
    return Chart(title, note, draw(540, "wide"), draw(340, "narrow"))


# -- curves --------------------------------------------------------------------------------------------------


def curve_charts(entries: Sequence[Entry]) -> list[Chart]:
    """By budget, by samples, by seconds, by length."""
    charts = [_by_budget(entries), _by_samples(entries), _by_seconds(entries), _by_length(entries)]
    return [chart for chart in charts if chart]


def _cells(entry: Entry) -> list[AccuracyCell]:
    """Of the headline's task, by budget."""
    cells = entry.artifact.accuracy.cells if entry.artifact.accuracy else ()
    fitting = [cell for cell in cells if entry.cell and cell.task == entry.cell.task]
    return sorted(fitting, key=lambda cell: (cell.budget, cell.samples))


def _by_budget(entries: Sequence[Entry]) -> Chart | None:
    """None when no model takes budgets: each was asked once, and the same answers stand for all of them."""
    accuracies = [entry.artifact.accuracy for entry in entries]
    if not any(accuracy and accuracy.takes_budgets for accuracy in accuracies):
        return None
    budgets = sorted({cell.budget for entry in entries for cell in _cells(entry)})
    series = []
    for entry in entries:
        cells = [cell for cell in _cells(entry) if entry.cell and cell.samples == entry.cell.samples]
        points = tuple((float(budgets.index(cell.budget)), cell.accuracy) for cell in cells)
        series.append(_series(entry, points))
    names = [f"{budget:,}" for budget in budgets]
    return _curves("By thinking budget", "Most tokens of reasoning.", "budget, tokens", series, names)


def _by_samples(entries: Sequence[Entry]) -> Chart | None:
    counts = sorted({cell.samples for entry in entries for cell in _cells(entry)})
    series = []
    for entry in entries:
        cells = [cell for cell in _cells(entry) if entry.cell and cell.budget == entry.cell.budget]
        points = tuple((float(counts.index(cell.samples)), cell.accuracy) for cell in cells)
        series.append(_series(entry, points))
    names = [str(count) for count in counts]
    return _curves("By samples", "The majority of so many answers.", "samples", series, names)


def _by_seconds(entries: Sequence[Entry]) -> Chart | None:
    """A line for the fewest and one for the most samples, along the budgets."""
    series = []
    for entry in entries:
        counts = [cell.samples for cell in _cells(entry)]
        for samples in sorted({min(counts), max(counts)}) if counts else ():
            cells = [cell for cell in _cells(entry) if cell.samples == samples and cell.seconds > 0]
            points = tuple((cell.seconds, exact(cell.accuracy.value)) for cell in cells)
            name = f"{entry.name}, {samples} {'sample' if samples == 1 else 'samples'}"
            series.append(Series(name, points, entry.colour, entry.marker))
    drawn = [one for one in series if one.points]
    if sum(len(one.points) for one in drawn) < 2:
        return None
    axis = Axis("seconds for an item", "low", SECONDS.format)
    note = "A line along the budgets for the fewest samples, and one for the most."
    return _drawn("By seconds", note, drawn, axis, RIGHT)


def _by_length(entries: Sequence[Entry]) -> Chart | None:
    found = {entry.name: entry.artifact.accuracy.lengths for entry in entries if entry.artifact.accuracy}
    bins = sorted({(one.low, one.high) for lengths in found.values() for one in lengths})
    series = []
    for entry in entries:
        points = tuple(
            (float(bins.index((one.low, one.high))), wilson(one.right, one.items))
            for one in found.get(entry.name, ())
            if one.items
        )
        series.append(_series(entry, points))
    names = [f"{low:,} to {high - 1:,}" for low, high in bins]
    note = "Share of right answers among those of so many tokens."
    return _curves("By length", note, "tokens generated", series, names)


def _by_kind(entries: Sequence[Entry]) -> Chart | None:
    kinds = ("reasoning", "answer", "numbers", "operators")
    series = []
    for entry in entries:
        parts = entry.artifact.fidelity.parts if entry.artifact.fidelity else {}
        points = tuple(
            (float(index), _kl_of(parts[kind]))
            for index, kind in enumerate(kinds)
            if kind in parts and parts[kind].mean_kl > 0
        )
        series.append(_series(entry, points))
    return _curves("KL by kind of token", "Where the probability moves.", "tokens of", series, kinds, y=KL)


def speed_charts(entries: Sequence[Entry]) -> list[Chart]:
    """Decode by depth, prefill by length, decode by threads."""
    measured = [(entry, entry.artifact.latency) for entry in entries if entry.artifact.latency]
    kinds = (
        ("Decode", "tokens before them", [(entry, one.decode) for entry, one in measured]),
        ("Prefill", "tokens of the prompt", [(entry, one.prefill) for entry, one in measured]),
        ("Decode by threads", "threads", [(entry, one.thread_sweep) for entry, one in measured]),
    )
    charts = []
    for title, x_title, found in kinds:
        keys = sorted({key for _, values in found for key in values}, key=int)
        series = [
            _series(
                entry, tuple((float(keys.index(key)), _mean(values[key])) for key in keys if values.get(key))
            )
            for entry, values in found
        ]
        names = [f"{int(key):,}" for key in keys]
        charts.append(
            _curves(title, "Tokens per second, mean and deviation.", x_title, series, names, y=SPEED)
        )
    return [chart for chart in charts if chart]


def _mean(values: Sequence[float]) -> Estimate:
    mean, deviation = mean_and_deviation(values)
    return Estimate(mean, mean - deviation, mean + deviation)


def _series(entry: Entry, points: tuple[tuple[float, Estimate], ...]) -> Series:
    return Series(entry.name, points, entry.colour, entry.marker)


def _curves(
    title: str, note: str, x_title: str, series: Sequence[Series], names: Sequence[str], y: Axis = RIGHT
) -> Chart | None:
    drawn = [one for one in series if one.points]
    if len(names) < 2 or not drawn:
        return None
    return _drawn(title, note, drawn, Axis(x_title, "low"), y, names)


def _drawn(
    title: str, note: str, series: Sequence[Series], x: Axis, y: Axis, names: Sequence[str] = ()
) -> Chart:
    wide = draw_curves(series, x=x, y=y, x_names=names, label=title, class_="wide")
    narrow = draw_curves(series, x=x, y=y, x_names=names, label=title, width=340, class_="narrow")
    return Chart(title, note, wide, narrow)
