"""The report: what it says, and that nothing a model wrote can do anything in it."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import pytest

from edge_distill import cli
from edge_distill_bench.items import write_tasks
from edge_distill_bench.problem import Problem
from edge_distill_bench.report import report
from edge_distill_bench.report.charts import fidelity_charts
from edge_distill_bench.report.curves import Band, draw_intervals
from edge_distill_bench.report.entries import entries_of, verdict_of
from edge_distill_bench.report.flips import marked
from edge_distill_bench.report.fronts import Point, draw_front, exact, pareto
from edge_distill_bench.report.scales import Axis, scale_for
from edge_distill_bench.results import BenchResults, read_results, rows_path, write_results
from edge_distill_bench.statistics import Equivalence, Estimate
from edge_distill_runtime.errors import InputError
from tests.bench.result_folders import REFERENCE, write_folder

VOID = {"meta", "br", "hr", "img", "input", "link", "base", "source"}
TAGS = {
    "a", "b", "body", "code", "dd", "details", "div", "dl", "dt", "footer", "h1", "h2", "h3", "h4", "head",
    "header", "html", "li", "main", "mark", "meta", "nav", "p", "pre", "section", "small", "span", "style",
    "summary", "table", "tbody", "td", "th", "thead", "title", "tr", "ul",
    "svg", "circle", "line", "path", "polygon", "rect", "text",
}  # fmt: skip
HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
    "\"'><svg onload=window.hacked=1></style></div></td><!-- --><iframe src=http://evil.example>&lt;b&gt;"
    "\x00\x1b[31m\x07\x9b\u202e\u2066 [x](javascript:alert) | `rm` <!--"
)


class Page(HTMLParser):
    """Tags, attributes and text; an element that is left open or closed twice is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> inside <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data[:40]}")

    @property
    def text(self) -> str:
        return "".join(self.texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "bench"
    write_folder(path, items=40)
    report(path)
    return path


def inert(text: str) -> Page:
    """The page parsed, after what no page of ours may hold was looked for."""
    page = Page(text)
    assert page.tags <= TAGS
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "srcset", "style", "srcdoc", "action", "data", "xlink:href"), (tag, name)
        assert name != "href" or re.fullmatch(r"#[a-z]+", value), value
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert "@import" not in style
    assert "url(" not in style
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ")[:2] == ["default-src 'none'", f"style-src 'sha256-{digest}'"]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    return page


def test_the_page_is_whole_and_self_contained(folder: Path) -> None:
    text = (folder / "report.html").read_text("utf-8")
    page = inert(text)
    results = read_results(folder)
    for artifact in results.artifacts:
        assert artifact.name in page.text
    for title in ("Gate", "Pareto fronts", "Accuracy", "Curves", "Fidelity", "Speed", "Memory", "Flips"):
        assert title in page.text
    assert "How many are left?" in page.text
    assert "numpy 2.4.6" in page.text
    assert "--gate 'retention>=0.95,kl<=0.05'" in page.text
    assert len(text) < 600_000
    again = report(folder)
    assert Path(again.html).read_text("utf-8") == text


def test_the_page_shows_the_numbers_of_the_results(folder: Path) -> None:
    page = Page((folder / "report.html").read_text("utf-8"))
    results = read_results(folder)
    for artifact in results.artifacts:
        assert f"{artifact.size_bytes / 1e6:.1f}" in page.text
        assert artifact.accuracy
        assert artifact.latency
        for cell in artifact.accuracy.cells:
            found = cell.accuracy
            low, high = round(100 * found.low), round(100 * found.high)
            assert f"{cell.right} of {cell.items}: " in page.text
            assert f"[{low}, {high}]" in page.text
        assert f"{1000 * artifact.latency.inter_token.p99:.1f} ms" in page.text
        for one in artifact.memory:
            assert f"{max(one.peak_rss) / 1e6:.1f}" in page.text
    failed = sum(not line.passed for line in results.gate)
    assert failed
    assert page.text.count("FAILED") == failed


def test_flips_are_those_of_the_rows(folder: Path) -> None:
    results = read_results(folder)
    budget = max(results.settings.budgets)
    verdicts: dict[str, dict[str, str]] = {}
    for artifact in results.artifacts:
        for line in rows_path(folder, artifact.name).read_text().splitlines():
            row = json.loads(line)
            if (row["budget"], row["samples"]) == (budget, 1):
                verdicts.setdefault(artifact.name, {})[row["id"]] = row["verdict"]
    before, after = verdicts[REFERENCE], verdicts["onnx:int4"]
    flipped = [item for item in before if (before[item] == "right") != (after[item] == "right")]
    text = (folder / "report.html").read_text("utf-8")
    shown = text.partition(f"onnx:int4 against {REFERENCE}: ")[2]
    assert shown.startswith(f"6 of {len(flipped)}" if len(flipped) > 6 else str(len(flipped)))
    ids = re.findall(r"rolls-\d+", shown.partition("</section>")[0])
    assert len(ids) == min(6, len(flipped))
    assert set(ids) <= set(flipped)


def test_hostile_text_is_inert(tmp_path: Path) -> None:
    write_folder(tmp_path / "x", items=8)
    path = make_hostile(tmp_path / "x")
    report(path)
    text = (path / "report.html").read_text("utf-8")
    page = inert(text)
    assert "window.hacked=1" in page.text  # it is there, as text
    assert "␛[31m" in page.text
    assert "characters left out" in page.text
    assert len(text) < 1_000_000
    lines = (path / "report.md").read_text("utf-8")
    assert not re.search(r"(?<!\\)<", lines.partition("## Command")[0])
    assert not re.search(r"(?<!\\)\]\(", lines.partition("## Command")[0])
    rows = list(csv.reader((path / "results.csv").read_text("utf-8").splitlines()))
    assert {len(row) for row in rows} == {8}
    assert all(not row[0].startswith("=") for row in rows)
    assert any(row[0].startswith("'=cmd") for row in rows)


def make_hostile(path: Path) -> Path:
    """Every text of the results and rows as an attacker would have it."""
    results = read_results(path)
    names = {artifact.name: f"=cmd|{HOSTILE} {index}" for index, artifact in enumerate(results.artifacts)}
    value = json.loads(json.dumps(results.to_dict()))

    def spoiled(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: spoiled(one) for key, one in item.items()}
        if isinstance(item, list):
            return [spoiled(one) for one in item]
        return names.get(item, item) if isinstance(item, str) else item

    value = spoiled(value)
    value["command"] = value["created"] = value["noise"]["what"] = HOSTILE
    value["machine"] |= {"cpu": HOSTILE, "system": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    value["settings"]["tasks"] = [HOSTILE]
    for line in value["gate"]:
        line |= {"limit": HOSTILE, "text": HOSTILE}
    for artifact in value["artifacts"]:
        artifact |= {"hash": HOSTILE, "format": HOSTILE, "precision": HOSTILE}
        artifact["latency"]["included"] = artifact["energy"]["reason"] = HOSTILE
        for cell in artifact["accuracy"]["cells"]:
            cell["task"] = HOSTILE
        if artifact["fidelity"]:
            artifact["fidelity"]["parts"][HOSTILE] = artifact["fidelity"]["parts"]["numbers"]
    problems = [Problem(f"rolls-{number:03d}", "t", HOSTILE, HOSTILE) for number in range(40)]
    write_tasks(path, {HOSTILE: problems})
    for old, new in names.items():
        rows = [json.loads(line) for line in rows_path(path, old).read_text().splitlines()]
        for row in rows:
            row |= {"text": HOSTILE * 30 + "\ud800", "answer": HOSTILE, "key": HOSTILE}
        rows[0]["text"] = "<b>" * 700_000
        rows[1]["text"] = "\u202e".join(["word"] * 200_000)
        rows_path(path, old).unlink()
        rows_path(path, new).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_results(path, BenchResults.from_dict(value))
    return path


@pytest.mark.parametrize("part", ["latency", "memory", "accuracy", "fidelity", "energy"])
def test_parts_that_were_not_measured_are_left_out(folder: Path, tmp_path: Path, part: str) -> None:
    results = read_results(folder)
    empty: Any = () if part == "memory" else None
    without = [replace(artifact, **{part: empty}) for artifact in results.artifacts]
    write_results(tmp_path, replace(results, artifacts=tuple(without), gate=(), ratios=()))
    page = inert(Path(report(tmp_path).html).read_text("utf-8"))
    sections = {value for tag, name, value in page.attributes if (tag, name) == ("section", "id")}
    assert {"latency": "speed", "accuracy": "curves"}.get(part, part) not in sections
    assert len(sections) >= 5
    alone: dict[str, Any] = dict.fromkeys(("latency", "accuracy", "fidelity", "energy")) | {"memory": ()}
    kept = {part: getattr(results.artifacts[-1], part)}
    write_results(
        tmp_path,
        replace(
            results,
            artifacts=(replace(without[-1], **(alone | kept)),),
            teacher=None,
            reference=None,
            gate=(),
        ),
    )
    inert(Path(report(tmp_path).html).read_text("utf-8"))


def test_models_without_reasoning_have_no_curve_by_budget(folder: Path, tmp_path: Path) -> None:
    """They were asked once, and the same answers stand for every budget."""
    results = read_results(folder)
    assert "By thinking budget" in Path(report(folder).html).read_text("utf-8")
    one = next(artifact for artifact in results.artifacts if artifact.accuracy)
    assert one.accuracy
    without = replace(one, accuracy=replace(one.accuracy, takes_budgets=False))
    write_results(tmp_path, replace(results, artifacts=(without,), teacher=None, reference=None, gate=()))
    text = Path(report(tmp_path).html).read_text("utf-8")
    assert "By thinking budget" not in text
    assert "By length" in text


def test_the_csv_holds_every_number(folder: Path) -> None:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    results = read_results(folder)
    for artifact in results.artifacts:
        own = {(row["metric"], row["condition"]): row for row in rows if row["model"] == artifact.name}
        assert int(own["size", ""]["value"]) == artifact.size_bytes
        assert artifact.accuracy
        assert artifact.latency
        for cell in artifact.accuracy.cells:
            row = own["accuracy", f"{cell.task}; budget {cell.budget}; samples {cell.samples}"]
            assert float(row["value"]) == cell.accuracy.value
            assert float(row["low"]) == cell.accuracy.low
        rounds = artifact.latency.decode["0"]
        assert float(own["decode", "at 0"]["value"]) == pytest.approx(sum(rounds) / len(rounds))


def test_verdicts(folder: Path) -> None:
    results = read_results(folder)
    entries = entries_of(results)
    assert [entry.artifact.role for entry in entries[:2]] == ["teacher", "student"]
    entry = next(entry for entry in entries if entry.name == "gguf:q4_0")
    accuracy, one = entry.artifact.accuracy, entry.comparison
    assert accuracy
    assert one

    def verdict(**changes: Any) -> tuple[str, str]:
        changed = replace(one, **changes)
        comparisons = tuple(changed if found == one else found for found in accuracy.comparisons)
        artifact = replace(entry.artifact, accuracy=replace(accuracy, comparisons=comparisons))
        found = verdict_of(replace(entry, artifact=artifact), entries)
        return found.status, found.text

    kept: dict[str, Any] = {
        "retention": Estimate(0.98, 0.95, 1.0),
        "flips": replace(one.flips, right_to_wrong=3, wrong_to_right=1),
        "items": 200,
        "difference": Estimate(-0.01, -0.03, 0.01),
        "equivalence": Equivalence(0.05, 0.03, 0.05),
        "mcnemar_p": 0.625,
    }
    status, text = verdict(**kept)
    assert status == "equivalent"
    assert text.startswith(
        "Keeps 98 % [95, 100] of the fp32 student's accuracy: 3 answers of 200 turned wrong, 1 right. "
        "The difference is shown to be within 5 points (p = 0.030). 91.7 MB (17 % of the student's), "
    )
    assert verdict(**kept | {"equivalence": Equivalence(0.05, 0.3, 0.05)})[0] == "unclear"
    worse = kept | {
        "equivalence": Equivalence(0.05, 0.9, 0.05),
        "difference": Estimate(-0.08, -0.12, -0.04),
        "mcnemar_p": 0.0002,
    }
    status, text = verdict(**worse)
    assert status == "worse"
    assert "It is worse by 8.0 points (McNemar p < 0.001)" in text
    assert "got nothing right" in verdict(**kept | {"retention": None})[1]


# -- drawings ------------------------------------------------------------------------------------------------


def test_pareto_is_what_nothing_beats() -> None:
    draw = random.Random(1)
    sides: tuple[Literal["low", "high"], ...] = ("low", "high")
    for x_better in sides:
        for y_better in sides:
            x, y = Axis("x", x_better), Axis("y", y_better)
            points = [Point(str(n), exact(draw.randint(0, 9)), exact(draw.randint(0, 9))) for n in range(25)]
            places = [
                (
                    point.x.value * (1 if x_better == "low" else -1),
                    point.y.value * (1 if y_better == "low" else -1),
                )
                for point in points
            ]
            unbeaten = {
                place
                for place in places
                if not any(
                    other != place and other[0] <= place[0] and other[1] <= place[1] for other in places
                )
            }
            front = pareto(points, x, y)
            assert {places[points.index(point)] for point in front} == unbeaten
            assert len(front) == len(unbeaten)


def test_fronts_of_groups() -> None:
    points = [
        Point("ours small", exact(92), exact(0.03), group="ours"),
        Point("ours large", exact(105), exact(0.01), group="ours"),
        Point("theirs", exact(92), Estimate(0.2, 0.1, 0.3), group="peers", colour="muted", marker="square"),
        Point("reference", exact(500), exact(0.001), group="peers", in_front=False),
    ]
    svg = draw_front(points, x=Axis("MB", "low"), y=Axis("KL", "low"), label="KL against size")
    assert Page(svg).tags <= TAGS
    assert svg.count('class="front"') == 1
    assert svg.count('class="front dashed"') == 1
    for point in points:
        assert f">{point.label}</text>" in re.sub("<title>.*?</title>", "", svg, flags=re.DOTALL)
    # KL is logarithmic, and less is further down
    heights = {name: float(y) for y, name in re.findall(r'cy="([\d.]+)"[^>]*><title>(ours \w+)', svg)}
    assert heights["ours large"] > heights["ours small"]


def test_peers_have_a_front_of_their_own(folder: Path) -> None:
    results = read_results(folder)

    def drawn(peers: set[str]) -> str:
        artifacts = tuple(replace(one, peer=one.name in peers) for one in results.artifacts)
        charts = fidelity_charts(entries_of(replace(results, artifacts=artifacts)))
        chart = next(chart for chart in charts if chart.title == "KL against size")
        assert ("models that other programs made" in chart.note) == bool(peers)
        return chart.wide

    assert 'class="front dashed"' not in drawn(set())
    assert drawn({"gguf:q4_0"}).count('class="front dashed"') == 1


def test_ticks_are_round() -> None:
    linear = scale_for(Axis("", "high", log=False, floor=0, ceiling=1), [0.52, 0.95], 0, 100)
    assert linear.ticks(5) == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert scale_for(Axis("", "low"), [90, 540], 0, 100).ticks(4) == [100, 200, 500]
    assert scale_for(Axis("", "low"), [3.0], 0, 100).ticks(3)
    for low, high in [(1e-6, 0.5), (0.0491, 0.0513), (91.7, 92.0), (1, 1e6), (0, 0)]:
        scale = scale_for(Axis("", "low"), [low, high], 0, 100)
        ticks = scale.ticks(5)
        assert 1 <= len(ticks) <= 9
        assert all(0 <= scale(tick) <= 100 for tick in ticks)
        assert scale(low) <= scale(high)


def test_intervals_stand_where_they_belong() -> None:
    bands = [Band("a", Estimate(0.9, 0.8, 1.0), "90 %"), Band("b", Estimate(1.0, 0.99, 1.01), "100 %")]
    axis = Axis("share", "high", log=False)
    svg = draw_intervals(bands, axis, label="kept", reference=1.0)
    reference = float(re.findall(r'class="reference" x1="([\d.]+)"', svg)[0])
    places = [float(x) for x in re.findall(r'cx="([\d.]+)"', svg)]
    assert places[0] < reference
    assert places[1] == reference
    assert Page(svg).tags <= TAGS


def test_differences_are_marked() -> None:
    one = "First I add 28 and 4 to get 32. Then I double it and so on. It is 64."
    two = "First I add 28 and 4 to get 34. Then I double it and so on. It is 68."
    left, right = marked(one, two)
    assert [words.strip() for differs, words in left if differs] == ["32.", "64."]
    assert [words.strip() for differs, words in right if differs] == ["34.", "68."]
    assert "".join(words for _, words in left) == one
    assert marked("same words here", "same words here") == ([(False, "same words here")],) * 2
    assert marked("", "new") == ([], [(True, "new")])
    # two equal words between differences mean nothing
    left, _ = marked("a b c x y d e f", "p q r x y s t u")
    assert left == [(True, "a b c x y d e f")]


# -- the verb ------------------------------------------------------------------------------------------------


def test_the_verb_and_the_module(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert Path(document["html"]).name == "report.html"
    assert set(document["verdicts"]) == {artifact.name for artifact in read_results(folder).artifacts}
    assert cli.main(["report", str(folder / "results.json")]) == 0
    assert "report.md" in capsys.readouterr().out
    command = [sys.executable, "-X", "importtime", "-m", "edge_distill_bench.report", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[0] == str(folder / "report.html")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {
        "typer",
        "rich",
        "matplotlib",
        "torch",
        "edge_distill",
    }  # a device has none of them


def test_folders_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="does not exist"):
        report(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "schema_version None" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


# -- in a browser --------------------------------------------------------------------------------------------

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")

# What a page around the report sees of it.
OUTSIDE = """<!DOCTYPE html><body><iframe src="report.html" style="border:0;width:%dpx;height:800px"></iframe>
<pre></pre><script>addEventListener("load", () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, root = page.documentElement;
  const seen = name => [...page.querySelectorAll("svg." + name)].filter(one => one.getClientRects().length).length;
  document.querySelector("pre").textContent = JSON.stringify({
    width: root.scrollWidth, hacked: frame.contentWindow.hacked ?? null, scripts: page.scripts.length,
    wide: seen("wide"), narrow: seen("narrow"),
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    font: Math.min(...[...page.querySelectorAll("svg.narrow text")].filter(one => one.getClientRects().length)
      .map(one => one.getBoundingClientRect().height)),
  })})</script></body>"""


def in_browser(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--allow-file-access-from-files", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", *options,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@needs_chromium
@pytest.mark.parametrize("hostile", [False, True])
def test_a_phone_shows_the_page(folder: Path, tmp_path: Path, hostile: bool) -> None:
    path = tmp_path / "bench"
    shutil.copytree(folder, path)
    if hostile:
        report(make_hostile(path))
    for width in (360, 1280):
        (path / "outside.html").write_text(OUTSIDE % width)
        done = in_browser(path, "--virtual-time-budget=5000", "--dump-dom", f"file://{path}/outside.html")
        found = json.loads(re.findall("<pre>(.*?)</pre>", done.stdout)[0])
        assert found["width"] == width  # nothing sticks out
        assert found["hacked"] is None
        assert found["scripts"] == 0
        assert found["background"] == "rgb(247, 247, 245)"  # so the style sheet was accepted
        assert (found["narrow"] > 0) == (
            width == 360 or found["narrow"] == 3
        )  # three small ones on a wide page
        assert (found["wide"] > 0) == (width == 1280)
        if width == 360:
            assert found["font"] >= 10
        assert "Content Security Policy" not in done.stderr


@needs_chromium
def test_a_picture_of_the_page(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "page.png"
    in_browser(tmp_path, "--window-size=1280,1600", f"--screenshot={path}", f"file://{folder}/report.html")
    with Image.open(path) as picture:
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours
    by_count = sorted(colours, reverse=True)
    assert by_count[0][1] in ((247, 247, 245), (255, 255, 255))
    drawn = {colour for _, colour in colours}
    assert {(42, 120, 214), (226, 97, 43), (18, 147, 106)} <= drawn  # c0, c1, c2
