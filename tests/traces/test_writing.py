"""Problems to traces: what is kept, dropped and asked again, and ten kills."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from edge_distill.traces.few_shot import ExemplarPool
from edge_distill.traces.report import TracesWritten
from edge_distill.traces.teachers.solver import SolverTeacher
from edge_distill.traces.teachers.teacher import Request, Sampling, Written
from edge_distill.traces.trace import read_traces
from edge_distill.traces.ways import Way, repeated
from edge_distill.traces.writing import Part, traces, write_traces
from edge_distill_bench.tasks import load_problems
from edge_distill_runtime import BackendError, InputError
from tests.traces.adders import Scripted, addition
from tests.traces.killed_writer import PROBLEMS, SAMPLES, TRIES
from tests.traces.small_teachers import ErringTeacher, sums

ROOT = Path(__file__).parents[2]


def write(
    out: Path,
    teacher: ErringTeacher,
    *,
    count: int = 40,
    samples: int = 2,
    tries: int = 3,
    pairs: bool = False,
) -> TracesWritten:
    part = Part("sums", sums(count), Way("chain", samples, Sampling()))
    return write_traces([part], teacher, out, tries=tries, pairs=pairs)


def test_every_problem_is_kept_once_or_counted_as_dropped(tmp_path: Path) -> None:
    out = tmp_path / "traces.jsonl"
    teacher = ErringTeacher()
    done = write(out, teacher, tries=2)
    kept = list(read_traces(out))
    assert done.kept == len(kept) == len({trace.problem for trace in kept}) == sum(done.kept_in_round)
    assert 0 < done.dropped == 40 - done.kept
    assert all(trace.correct and trace.answer == trace.gold for trace in kept)
    # the teacher's own account: problems with no right answer in rounds 1 and 2 are the dropped ones
    seeds = Counter(request.seed for request in teacher.requests)
    assert set(seeds) == {0, 1, 2, 3}
    assert seeds[0] == seeds[1] == 40
    assert seeds[2] == seeds[3] == 40 - done.kept_in_round[0]
    assert done.requests == len(teacher.requests) == done.samples + done.failed
    (group,) = done.groups
    assert (group.task, group.difficulty, group.problems) == ("chain_sum", {"num_terms": 3}, 40)
    assert group.drop_rate == done.dropped / 40 == done.to_dict()["drop_rate"]


def test_what_is_cut_off_or_wrong_is_never_chosen(tmp_path: Path) -> None:
    out = tmp_path / "traces.jsonl"
    done = write(out, ErringTeacher(cut_off=3), samples=4)
    samples = list(read_traces(tmp_path / "traces.samples.jsonl"))
    cut_off = [trace for trace in samples if trace.notes.get("finish_reason") == "length"]
    assert len(cut_off) == done.cut_off > 0
    assert all(trace.correct is None and trace.vote_share is None and not trace.answer for trace in cut_off)
    assert any(trace.correct is False for trace in samples)
    assert len(samples) == done.samples
    chosen = {(trace.problem, trace.seed) for trace in read_traces(out)}
    assert chosen <= {(trace.problem, trace.seed) for trace in samples if trace.correct}


def test_a_second_run_asks_only_what_failed(tmp_path: Path) -> None:
    out = tmp_path / "traces.jsonl"
    first = write(out, ErringTeacher())
    before = out.read_bytes()
    assert first.failed > 0
    again = ErringTeacher()
    second = write(out, again)
    assert second.requests == second.failed == first.failed
    assert second.requests_found == first.requests - first.failed
    assert out.read_bytes() == before
    # the line is mended: what failed is asked and answered, and no problem is kept twice
    mended = write(out, ErringTeacher(failing=0))
    assert mended.failed == 0
    assert len({trace.problem for trace in read_traces(out)}) == len(list(read_traces(out))) == mended.kept


def test_more_samples_ask_only_the_new_ones(tmp_path: Path) -> None:
    out = tmp_path / "traces.jsonl"
    write(out, ErringTeacher(failing=0), samples=2, tries=1)
    teacher = ErringTeacher(failing=0)
    done = write(out, teacher, samples=4, tries=1)
    assert (done.requests, done.requests_found) == (80, 80)
    assert {request.seed for request in teacher.requests} == {2, 3}


def test_killed_at_ten_points(tmp_path: Path) -> None:
    whole, out, log = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl", tmp_path / "log"
    generator = random.Random(10)
    run(whole, tmp_path / "whole-log", 0)
    for _ in range(10):
        child = start(out, log, 0.01)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(generator.uniform(0.02, 0.15))
        child.send_signal(signal.SIGKILL)
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
    middle = len(log.read_text().splitlines())
    assert 0 < middle < PROBLEMS * SAMPLES
    run(out, log, 0)

    asked = Counter(log.read_text().splitlines())
    stored = (tmp_path / "killed.answers.jsonl").read_text().splitlines()
    assert len(asked) == len(stored) == len({json.loads(line)["key"] for line in stored})
    # an answer may be on its way when the process dies: at most that one is asked again
    assert sum(asked.values()) <= len(asked) + 10
    assert set(asked) == set((tmp_path / "whole-log").read_text().splitlines())
    for name in ("", ".samples", ".pairs", ".labels"):
        left, right = (sorted_lines(path.with_suffix(f"{name}.jsonl")) for path in (whole, out))
        assert left == right
        assert len(left) > 10


def start(out: Path, log: Path, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.traces.killed_writer", str(out), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)


def run(out: Path, log: Path, seconds: float) -> None:
    child = start(out, log, seconds)
    child.communicate()
    assert child.returncode == 0
    assert TRIES > 1


def sorted_lines(path: Path) -> list[str]:
    return sorted(path.read_text(encoding="utf-8").splitlines())


def test_the_solvers_solve_all_and_granularity_shortens(tmp_path: Path) -> None:
    source = "task:gsm_symbolic"
    part = Part(source, load_problems(source, split="train", count=20), Way())
    full = write_traces([part], SolverTeacher(), tmp_path / "full.jsonl")
    critical = write_traces([part], SolverTeacher(), tmp_path / "critical.jsonl", granularity="critical")
    assert full.kept == critical.kept == 20
    long, short = (list(read_traces(tmp_path / f"{name}.jsonl")) for name in ("full", "critical"))
    assert all(a.problem == b.problem for a, b in zip(long, short, strict=True))
    assert sum(len(trace.steps) for trace in short) < sum(len(trace.steps) for trace in long)
    assert {trace.sampling["granularity"] for trace in short} == {"critical"}
    assert all(trace.verified[0] == "answer:exact" for trace in long)
    assert sum("steps:checker" in trace.verified for trace in long) > 15


def test_a_teacher_that_answers_nothing_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="the line was cut") as error:
        write(tmp_path / "traces.jsonl", ErringTeacher(failing=8))
    assert error.value.code == "no-answers"
    done = write(tmp_path / "traces.jsonl", ErringTeacher(failing=4), samples=1, tries=1)
    assert 0 < done.unanswered < done.dropped
    assert done.unanswered == done.failed


@pytest.mark.parametrize(
    ("way", "code"),
    [
        (Way(samples=0), "bad-samples"),
        (Way(samples=2, sampling=Sampling(temperature=0)), "bad-temperature"),
        (Way("tree", sampling=Sampling(temperature=0)), "greedy-branches"),
        (Way("react", exemplars=ExemplarPool((), 2)), "unused-few-shot"),
        (Way("chain", search="best"), "unused-tree-option"),
        (Way("react", refutation=True), "unused-tree-option"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_asked(way: Way, code: str, tmp_path: Path) -> None:
    teacher = ErringTeacher()
    with pytest.raises(InputError) as error:
        write_traces([Part("sums", sums(3), way)], teacher, tmp_path / "traces.jsonl")
    assert error.value.code == code
    assert not teacher.requests
    assert list(tmp_path.iterdir()) == []


def test_a_greedy_teacher_has_one_round(tmp_path: Path) -> None:
    teacher = ErringTeacher()
    part = Part("sums", sums(20), Way(sampling=Sampling(temperature=0)))
    done = write_traces([part], teacher, tmp_path / "traces.jsonl", tries=3)
    assert len(teacher.requests) == 20
    assert done.dropped > 0


@pytest.mark.parametrize(
    ("way", "name", "tries"),
    [
        (Way("tree", samples=2, seed=3), "tree", 1),
        (Way("tree", seed=3, search="best", scorer="teacher", refutation=True), "tree", 1),
        (Way("react", seed=3), "react", 1),
        (Way("chain", seed=3, verify=True), "chain", 1),
        (Way("chain", samples=2, seed=3, verify=True), "chain", 2),
    ],
)
def test_every_way_goes_through_the_same_files(way: Way, name: str, tries: int, tmp_path: Path) -> None:
    def answer(request: Request) -> Written:
        if "Thought:" in request.messages[0]["content"] + request.messages[-1]["content"]:
            return Written("", "Thought: 1 + 2 = 3\nFinal Answer: 3", "stop", 5)
        if "short questions" in request.messages[-1]["content"]:
            return Written("", "Is 1 + 2 = 3?", "stop", 5)
        return Written("1 + 2 = 3", r"\boxed{3}", "stop", 5)

    teacher, out = Scripted(answer), tmp_path / "traces.jsonl"
    part = Part("additions", [addition(1, 2), addition(2, 2)], way)
    done = write_traces([part], teacher, out, tries=tries)
    assert (done.kept, done.dropped) == (1, 1)
    (trace,) = read_traces(out)
    assert trace.sampling["elicitation"] == name
    assert trace.seed in range(3, 3 + way.samples)
    assert ("teacher:verification" in trace.verified) == way.verify
    samples = list(read_traces(tmp_path / "traces.samples.jsonl"))
    seeds = {sample.seed for sample in samples if sample.problem == addition(2, 2).problem}
    assert seeds == set(range(3, 3 + way.samples * tries))
    before, asked = out.read_bytes(), len(teacher.requests)
    again = write_traces([part], teacher, out, tries=tries)
    assert (again.requests, len(teacher.requests)) == (0, asked)
    assert again.requests_found == done.requests + done.requests_found
    assert out.read_bytes() == before


def test_repeated_ways_gather_the_attempts_of_a_problem() -> None:
    teacher = ErringTeacher()
    elicit = repeated([Way(seed=seed).elicitation(0) for seed in (5, 6, 9)])
    found = dict(elicit(sums(4), teacher))
    assert sorted(found) == [0, 1, 2, 3]
    assert [[candidate.seed for candidate in found[index]] for index in range(4)] == [[5, 6, 9]] * 4


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "problems.jsonl"
    lines = [json.dumps({"problem": p.problem, "answer": p.answer, "task": p.task}) for p in sums(30)]
    source.write_text("\n".join([*lines[:4], "{torn", *lines[4:], '{"problem": "no answer"}']) + "\n")
    out = tmp_path / "new" / "traces.jsonl"
    done = traces(
        [str(source), "task:leg_counting"],
        teacher="solver:",
        out=out,
        count=10,
        few_shot=2,
        granularity="compact",
        pairs=True,
    )
    assert (done.problems, done.kept, done.bad_lines) == (20, 20, 2)
    rejects = [json.loads(line) for line in (out.parent / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["line"], reject["reason"]) for reject in rejects] == [
        (5, "not JSON"),
        (32, "'answer' is missing or empty"),
    ]
    for trace in read_traces(out):
        assert len(trace.sampling["exemplars"]) == 2
        assert trace.notes["problem"] not in trace.sampling["exemplars"]
        assert [turn["role"] for turn in trace.messages] == ["user", "assistant"]
    done.render(Console(file=sys.stdout, width=200))
    assert "20 traces of 20 problems" in capsys.readouterr().out
