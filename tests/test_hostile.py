"""The table of completions that try to fool, hang or break the checkers, and the other tables of gaming texts."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from stages.chat import parse
from stages.language import language_share
from stages.rewards import sandbox
from stages.rewards.checkers import CHECKERS, Verdict, answer_text, check
from stages.rewards.repetition_penalty import repeated_share
from tests.hostile_completions import ROWS, Row
from tests.hostile_expressions import LANGUAGES, LOOPS, PROMPTED
from tests.test_checkers import make_problem

ROOT = Path(__file__).parents[1]
REFUSED = [row for row in ROWS if row[2] == "math" and row[4] == "wrong" and len(parse(row[1]).answer or "") < 500]


def judge(row: Row) -> Verdict:
    _, completion, checker, gold, _, _ = row
    return check(answer_text(parse(completion), checker), make_problem(checker, gold))


def test_the_table_of_hostile_completions_covers_every_checker_and_is_large() -> None:
    assert {row[2] for row in ROWS} == set(CHECKERS) - {"code"}  # whose own table is in test_code.py
    assert len(ROWS) >= 300 and not [name for name, times in Counter(row[0] for row in ROWS).items() if times > 1]


def test_every_completion_gets_its_verdict_with_little_time_and_memory() -> None:
    code = f"""
import resource
from tests.test_hostile import ROWS, judge, parse, cpu_seconds, sandbox
resource.setrlimit(resource.RLIMIT_AS, ({2**30}, resource.RLIM_INFINITY))  # bytes; the children set their own
judge(("warm up", "<answer> x|y|z </answer>", "math", "|x|+yz", "", False))
for row in ROWS:
    start = cpu_seconds()
    found, spent = (judge(row), parse(row[1]).well_formed), cpu_seconds() - start
    if found != row[4:] or spent > 2.0:
        print(row[0], found, "not", row[4:], f"{{spent:.2f}} s")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


def cpu_seconds() -> float:
    """CPU time of this process and of the children that judge, with all their copies."""
    spent = time.process_time()
    for worker in sandbox._workers:
        process = psutil.Process(worker.process.pid)
        spent += sum(process.cpu_times()[:4]) + sum(sum(copy.cpu_times()[:2]) for copy in process.children())
    return spent


@pytest.mark.parametrize(("question", "answer", "gold", "verdict"), [row[1:] for row in PROMPTED])
def test_the_question_said_again_is_no_answer(question: str, answer: str, gold: str, verdict: str) -> None:
    assert check(answer, make_problem("math", gold, question)) == verdict


@pytest.mark.parametrize(("text", "language", "highest"), [row[1:] for row in LANGUAGES], ids=[r[0] for r in LANGUAGES])
def test_another_language_is_found_however_it_hides(text: str, language: str, highest: float) -> None:
    share = language_share(text, language)
    assert share is not None and share <= highest


@pytest.mark.parametrize(("text", "lowest"), [row[1:] for row in LOOPS], ids=[row[0] for row in LOOPS])
def test_reasoning_in_circles_is_found(text: str, lowest: float) -> None:
    assert repeated_share(text, 3) >= lowest


@pytest.mark.parametrize("row", REFUSED, ids=[row[0] for row in REFUSED])
def test_a_refused_answer_earns_no_more_in_a_box(row: Row) -> None:
    answer = parse(row[1]).answer
    assert answer is None or check(rf"\boxed{{{answer}}}", make_problem("math", row[3])) is not Verdict.right
