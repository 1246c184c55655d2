"""stages/rewards/sandbox.py: answers that hang, code that must not run, children that die, none left behind."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from latex2sympy2_extended import latex2sympy2 as reader

from stages.rewards import sandbox, sandbox_worker
from stages.rewards.checkers import Verdict, check
from tests.hostile_expressions import ANSWERS
from tests.test_checkers import make_problem
from tests.test_hostile import cpu_seconds

ROOT = Path(__file__).parents[1]
HANGING = (r"x+|y|", "|(x+y+z+w)^{60}|")  # passes our rules, keeps sympy busy for minutes


def test_an_answer_that_hangs_the_library_costs_its_own_limit_and_the_next_one_is_judged() -> None:
    gold, answer = HANGING
    check("c+d", make_problem("math", "|d|+c"))  # start a child
    start = cpu_seconds()
    assert check(answer, make_problem("math", gold)) is Verdict.cannot_tell
    assert cpu_seconds() - start < 1.0  # 0.2 s, a fork, and the parser's first steps
    assert check("|y|+x", make_problem("math", gold)) is Verdict.right


WAITING = {  # in C code, so that no alarm of Python's would be heard, and without CPU time
    "a sleep": "time.sleep(10)",
    "a lock that is held": "[lock.acquire(timeout=10) for lock in [threading.Lock()] * 2]",
    "a call of the C library": "ctypes.CDLL(None).poll(None, 0, 10_000)",
}
WAITING_WORKER = """
import ctypes, importlib.util, sys, threading, time
spec = importlib.util.spec_from_file_location("sandbox_worker", {worker!r})
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
worker.WALL_LIMIT_S = {limit_s}

def compare(gold, answer):
    if answer == "wait":
        exec(code)
    return "right" if gold == answer else "wrong"

code = sys.argv[1]
worker.JUDGES[code] = lambda: worker.Judge(str, compare)
worker.main()
"""


@pytest.mark.parametrize(
    ("waiting", "limit_s"),
    [*((code, 0.5) for code in WAITING.values()), pytest.param("time.sleep(90)", None, marks=pytest.mark.long)],
    ids=[*WAITING, "a sleep, by the limit that is in use"],
)
def test_an_answer_that_waits_without_cpu_time_ends_by_the_clock_and_the_next_ones_are_judged(
    waiting: str, limit_s: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_s = limit_s or sandbox_worker.WALL_LIMIT_S
    script = tmp_path / "worker.py"
    script.write_text(WAITING_WORKER.format(worker=str(sandbox._WORKER), limit_s=limit_s))
    monkeypatch.setattr(sandbox, "_WORKER", script)
    questions = [sandbox.Question(waiting, "42", answer) for answer in ("42", "wait", "42", "43", "wait", "42")]
    begun, spent = time.monotonic(), cpu_seconds()
    verdicts = sandbox.ask_many(questions)
    assert verdicts == ["right", "cannot_tell", "right", "wrong", "cannot_tell", "right"]
    assert limit_s <= time.monotonic() - begun < 2 * limit_s + 5 and cpu_seconds() - spent < 1.0


@pytest.mark.parametrize("task", ["countdown", "string_insertion", "simple_integration"])
def test_a_scorer_that_evaluates_text_runs_no_code(task: str, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    attack = f"[open({str(planted)!r}, 'w').close()] + [__import__('os').system('touch {planted}')]"
    metadata = {"numbers": [3, 5], "target": 8, "variable": "x", "integrand": "3*x**2"}
    own = {"countdown": "3+5", "string_insertion": "AB", "simple_integration": "x**3 + C"}[task]
    problem = make_problem("reasoning_gym", json.dumps({"task": task, "entry": {"answer": own, "metadata": metadata}}))
    assert check(own, problem) is Verdict.right
    assert check(attack, problem) is not Verdict.right
    assert not planted.exists()


def test_an_integral_is_no_answer_to_an_integral() -> None:
    entry = {"answer": "x**3 + C", "metadata": {"variable": "x", "integrand": "3*x**2"}}
    problem = make_problem("reasoning_gym", json.dumps({"task": "simple_integration", "entry": entry}))
    assert check("x**3 + 7", problem) is Verdict.right
    assert check("Integral(3*x**2, x)", problem) is Verdict.wrong


def test_a_scorer_that_pays_for_anything_makes_the_gold_unusable() -> None:
    dataset = pytest.importorskip("reasoning_gym").create_dataset("game_of_life_halting", size=5, seed=3)
    entry = next(dict(entry) for entry in dataset if entry["answer"] == "False")
    problem = make_problem("reasoning_gym", json.dumps({"task": "game_of_life_halting", "entry": entry}))
    assert check("surely", problem) is Verdict.gold_unusable


@pytest.mark.parametrize("victim", ["the child", "its copy"])
def test_a_child_that_dies_of_something_else_is_replaced_and_the_question_asked_again(victim: str) -> None:
    check("a+b", make_problem("math", f"b+a+0{len(victim)}-{len(victim)}"))
    for worker in list(sandbox._workers):
        child = psutil.Process(worker.process.pid)
        for process in [child] if victim == "the child" else child.children():
            process.kill()
    for verdict, answer in (("right", "c+d"), ("wrong", "c+e"), ("right", "d+c+0"), ("wrong", "f+d")):
        assert sandbox.ask_many([sandbox.Question("math", "d+c", answer)]) == [verdict]  # and no reply of another


def test_a_child_may_take_one_gibibyte_and_no_more() -> None:
    code = "from stages.rewards.sandbox_worker import confine; confine(); bytearray({size})"
    command = [sys.executable, "-c"]
    assert subprocess.run([*command, code.format(size=2**29)], cwd=ROOT, capture_output=True).returncode == 0
    refused = subprocess.run([*command, code.format(size=2**30)], cwd=ROOT, capture_output=True, text=True)
    assert refused.stderr.splitlines()[-1] == "MemoryError"


def run_caller(body: str, *, wait: bool) -> subprocess.Popen[str]:
    """A program that asks one question, prints its children, and goes on with `body`."""
    code = (
        "import os, sys, time\nfrom stages.rewards import sandbox\n"
        "print(*sandbox.ask_many([sandbox.Question('math', 'b+a', 'a+b')] * 4))\n"
        f"print(*[worker.process.pid for worker in sandbox._workers], flush=True)\n{body}\n"
    )
    # From stdin on purpose: a caller without a file, which multiprocessing could not start children for.
    process = subprocess.Popen(
        [sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdin
    process.stdin.write(code)
    process.stdin.close()
    if wait:
        process.wait(timeout=60)
    return process


def read_children(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout
    assert process.stdout.readline().split() == ["right"] * 4
    return [int(pid) for pid in process.stdout.readline().split()]


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while (alive := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pids and not alive


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"  # a zombie waits for init, nothing runs
    except (FileNotFoundError, ProcessLookupError):
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@needs_proc
def test_no_child_is_left_when_the_caller_ends() -> None:
    process = run_caller("", wait=True)
    assert process.returncode == 0
    assert_gone(read_children(process))


@needs_proc
@pytest.mark.parametrize("kill_signal", [signal.SIGKILL, signal.SIGTERM])
def test_no_child_is_left_when_the_caller_is_killed_in_the_middle_of_a_question(
    kill_signal: signal.Signals,
) -> None:
    process = run_caller(f"sandbox.ask_many([sandbox.Question('math', *{HANGING!r})])", wait=False)
    children = read_children(process)
    time.sleep(0.3)
    process.send_signal(kill_signal)
    process.wait(timeout=30)
    assert_gone(children)


@pytest.mark.slow
@needs_proc
def test_a_caller_with_torch_loaded_gets_the_same_verdicts() -> None:
    pytest.importorskip("torch")
    process = run_caller("import torch; print(*sandbox.ask_many([sandbox.Question('math', 'd+c', 'c+d')]))", wait=True)
    assert_gone(read_children(process))
    assert process.stdout and process.stdout.read().split() == ["right"]


FORK = """
import os
from stages.rewards.sandbox import Question, ask_many
question = Question("math", "b+a", "a+b")
assert ask_many([question]) == ["right"]
copy = os.fork()
if copy == 0:
    os._exit(ask_many([question]) != ["right"])
assert os.waitpid(copy, 0)[1] == 0
"""


def test_a_forked_copy_of_the_caller_starts_children_of_its_own() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], cwd=ROOT, check=True, timeout=60)


def test_the_faster_reader_finds_the_same_trees_and_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def tree(text: str) -> str:
        parser = reader._Latex2Sympy().create_parser(text)
        try:
            return str(parser.math().toStringTree(recog=parser))
        except Exception:
            return "unreadable"

    def number(text: str) -> tuple[type, object]:
        found = reader._Latex2Sympy().parse_number(text)
        return type(found), found

    ours = ["x^2+3x+2", "(x+1)(x-2)", "x^", r"\frac12x", r"\{1,2\}", "[2,5)", "][", "1 2", r"\sin x^2", "|x|-|y|"]
    texts = [*ours, *sorted({text for texts in ANSWERS.values() for text in texts.values() if len(text) < 40})[::5]]
    digits = ["7", "007", "1,000", "0.50", "12.", "9" * 40]
    monkeypatch.setattr(reader.PSParser, "math", reader.PSParser.math)  # both are put back at the end
    monkeypatch.setattr(reader._Latex2Sympy, "parse_number", reader._Latex2Sympy.parse_number)
    found = [*map(tree, texts), *map(number, digits)]
    sandbox_worker.read_faster()
    assert [*map(tree, texts), *map(number, digits)] == found
    assert found.count("unreadable") > 2


def test_a_package_that_only_pythonpath_leads_to_is_there_for_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/site")
    assert sandbox._environment()["PYTHONPATH"] == "/somewhere/site"
