"""stages/rewards/checkers.py and what stands behind it: verdicts, gaming, hanging, and no process left
behind.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from stages.chat import parse
from stages.rewards import sandbox
from stages.rewards.checkers import CHECKERS, Verdict, answer_text, canonical, check, check_many
from stages.rewards.math_answer import clean, read_number
from tests.hostile_completions import ROWS, Row

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("R1_DATA", ROOT.parent / "shared" / "data"))
HANGING = (r"x+y", "(x+y+z+w)^{60}")  # passes our rules, keeps sympy busy for minutes


NUMBERISH = st.text(st.sampled_from("0123456789.,+-/ $%\\{}^e×万m"), max_size=24)


def make_problem(checker: str, answer: str, prompt: str = "?") -> dict[str, str]:
    return {
        "id": "1",
        "prompt": prompt,
        "answer": answer,
        "checker": checker,
        "domain": "math",
        "language": "en",
    }


def judge(row: Row) -> Verdict:
    _, completion, checker, gold, _, _ = row
    return check(answer_text(parse(completion), checker), make_problem(checker, gold))


# --- verdicts -----------------------------------------------------------------------------------------------


def test_the_table_of_hostile_completions_covers_every_checker_and_is_large() -> None:
    assert {row[2] for row in ROWS} == set(CHECKERS) - {"code"}  # whose own table is in test_code.py
    assert len(ROWS) >= 150 and not [name for name, times in Counter(row[0] for row in ROWS).items() if times > 1]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_hostile_completion_gets_its_verdict_and_costs_us_little(row: Row) -> None:
    start = time.process_time()
    assert (judge(row), parse(row[1]).well_formed) == (row[4], row[5])
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_refused_completion_never_earns_more_by_standing_in_a_box(row: Row) -> None:
    answer = parse(row[1]).answer
    if row[2] == "math" and row[4] == "wrong" and answer is not None and len(answer) < 500:
        assert check(rf"\boxed{{{answer}}}", make_problem("math", row[3])) != Verdict.right


def test_percent_may_be_added_only_when_the_question_speaks_of_percent() -> None:
    assert check("42%", make_problem("math", "42", "What percent of them?")) is Verdict.right
    assert check("42%", make_problem("math", "42", "How many of them?")) is Verdict.wrong
    assert check("42", make_problem("math", r"42\%")) is Verdict.right


@pytest.mark.parametrize(
    "gold", [r"14\pi", r"\sqrt{2}", r"\left( 3, \frac{\pi}{2} \right)", "p - q", r"[2,5)", r"x^2+1"]
)
def test_a_gold_answer_verifies_against_itself_and_not_against_a_part_of_it(gold: str) -> None:
    assert check(gold, make_problem("math", gold)) is Verdict.right
    assert check("14", make_problem("math", gold)) is Verdict.wrong


@pytest.mark.parametrize("gold", ["", "  ", "\\frac{", "x" * 1000])
def test_a_gold_answer_that_means_nothing_is_never_paid_for(gold: str) -> None:
    assert check("1", make_problem("math", gold)) in (Verdict.gold_unusable, Verdict.wrong)
    assert check(None, make_problem("math", gold)) in (Verdict.gold_unusable, Verdict.wrong)


def test_an_unknown_checker_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match="vibes"):
        check("1", make_problem("vibes", "1"))


def test_whole_texts_count_as_answers_only_where_a_reply_is_the_answer() -> None:
    plain = parse("I cannot help with that.")
    assert answer_text(plain, "refusal") == "I cannot help with that."
    assert answer_text(plain, "math") is None
    assert answer_text(parse("<think> I cannot help"), "refusal") is None


def test_check_many_keeps_order_and_asks_a_repeated_question_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[sandbox.Question] = []

    def toy_ask_many(questions: list[sandbox.Question]) -> list[str]:
        asked.extend(questions)
        return ["right" if "3" in answer else "wrong" for _, _, answer in questions]

    monkeypatch.setattr("stages.rewards.checkers.ask_many", toy_ask_many)
    problem = make_problem("math", r"\sqrt{300} + q")
    pairs = [(answer, problem) for answer in ("q+17.3", "q+17.2", "q+17.3")] + [("5", make_problem("math", "5"))]
    assert check_many(pairs) == ["right", "wrong", "right", "right"]
    assert len(asked) == 2


ONE_ANSWER = [
    ("math", "1,000 apples.", "1000", True),
    ("math", r"\frac{1}{2}", "0.5", True),
    ("math", r"\left( x, 2 \right)", "(x,2)", True),
    ("math", "41", "42", False),
    ("countdown", "3 * (5 - 1)", "(5-1)×3 = 12", True),
    ("countdown", "3 * 4", "12", False),
    ("exact", "Paris.", "paris", True),
    ("reasoning_gym", "(A)", "(B)", False),
]


@pytest.mark.parametrize(("checker", "one", "other", "same"), ONE_ANSWER)
def test_a_majority_vote_counts_answers_that_are_one_and_the_same_together(
    checker: str, one: str, other: str, same: bool
) -> None:
    assert (canonical(one, checker) == canonical(other, checker)) is same


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters()) | NUMBERISH, checker=st.sampled_from(sorted(CHECKERS)))
def test_no_text_makes_a_vote_raise(text: str, checker: str) -> None:
    assert isinstance(canonical(text, checker), str)


# --- never raises, never slow -------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.characters()) | NUMBERISH,
    checker=st.sampled_from(sorted(set(CHECKERS) - {"reasoning_gym", "judge", "code"})),
)
def test_no_text_makes_a_fast_path_raise(text: str, checker: str) -> None:
    golds = {
        "countdown": '{"numbers": [3, 5], "target": 8}',
        "instruction": '{"words": 2, "case": "lower"}',
        "refusal": "comply",
    }
    assert check(text, make_problem(checker, golds.get(checker, "8"))) in (Verdict.right, Verdict.wrong)


@settings(max_examples=300, deadline=None)
@given(text=NUMBERISH)
def test_reading_a_number_is_stable_and_exact(text: str) -> None:
    number = read_number(clean(text))
    if number:
        again = read_number(f"{number.value}")
        assert again and again.value == number.value


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**12), 10**12))
def test_every_integer_is_itself_with_and_without_commas_and_not_its_neighbour(value: int) -> None:
    problem = make_problem("math", str(value))
    assert check(f"{value:,}", problem) is check(f"${value}$.", problem) is Verdict.right
    assert check(str(value + 1), problem) is Verdict.wrong


# --- the child processes ------------------------------------------------------------------------------------


def test_an_answer_that_hangs_the_library_is_cut_off_and_the_next_one_is_judged() -> None:
    gold, answer = HANGING
    assert check(answer, make_problem("math", gold)) is Verdict.cannot_tell
    assert check("y+x", make_problem("math", gold)) is Verdict.right


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


def test_a_child_that_dies_of_something_else_is_replaced_and_the_question_asked_again() -> None:
    check("a+b", make_problem("math", "b+a"))
    for worker in list(sandbox._workers):
        worker.process.kill()
    assert check("c+d", make_problem("math", "d+c")) is Verdict.right


def run_caller(body: str, *, wait: bool) -> subprocess.Popen[str]:
    """A program that asks one question, prints its children, and goes on with `body`."""
    code = (
        "import os, sys, time\nfrom stages.rewards import sandbox\n"
        "print(*sandbox.ask_many([('math', 'b+a', 'a+b')] * 4))\n"
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
    process = run_caller(f"sandbox.ask_many([('math', *{HANGING!r})])", wait=False)
    children = read_children(process)
    time.sleep(0.3)
    process.send_signal(kill_signal)
    process.wait(timeout=30)
    assert_gone(children)


@pytest.mark.slow
@needs_proc
def test_a_caller_with_torch_loaded_gets_the_same_verdicts() -> None:
    pytest.importorskip("torch")
    process = run_caller("import torch; print(*sandbox.ask_many([('math', 'd+c', 'c+d')]))", wait=True)
    assert_gone(read_children(process))
    assert process.stdout and process.stdout.read().split() == ["right"]


FORK = """
import os
from stages.rewards.sandbox import ask_many
question = ("math", "b+a", "a+b")
assert ask_many([question]) == ["right"]
copy = os.fork()
if copy == 0:
    os._exit(ask_many([question]) != ["right"])
assert os.waitpid(copy, 0)[1] == 0
"""


def test_a_forked_copy_of_the_caller_starts_children_of_its_own() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], cwd=ROOT, check=True, timeout=60)


# --- real data ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "yardstick"), [("qwen3", 298), ("gpt", 471)])
def test_on_500_real_answers_we_agree_with_math_verify(name: str, yardstick: int) -> None:
    path = DATA / "answer_pairs" / f"math500_{name}_answers.json"
    if not path.exists():
        pytest.skip(f"REAL DATA MISSING: {path}; set R1_DATA to the folder with answer_pairs/")
    rows = json.loads(path.read_text())
    verdicts = check_many([(parse(row["prediction"]).answer, make_problem("math", row["answer"])) for row in rows])
    theirs = sandbox.ask_many([("math", row["answer"], parse(row["prediction"]).answer or "") for row in rows])
    for row, ours, library in zip(rows, verdicts, theirs, strict=True):
        if ours != library:
            print(f"ours {ours}, math-verify {library}: gold {row['answer']!r}, answer {row['prediction']!r}")
    counts = Counter(verdicts)
    assert counts[Verdict.right] == yardstick
    assert counts[Verdict.right] + counts[Verdict.wrong] == len(rows) == 500


def test_reasoning_gym_s_own_answers_are_right_and_others_wrong() -> None:
    files = sorted((DATA / "reasoning_gym").glob("*_60.jsonl"))
    if not files:
        pytest.skip(f"REAL DATA MISSING: {DATA / 'reasoning_gym'}; set R1_DATA")
    rows = [
        (path.stem.removesuffix("_60"), json.loads(line))
        for path in files
        for line in path.read_text().splitlines()[:5]
    ]
    problems = [make_problem("reasoning_gym", json.dumps({"task": task, "entry": entry})) for task, entry in rows]
    own = check_many([(entry["answer"], problem) for (_, entry), problem in zip(rows, problems, strict=True)])
    assert set(own) == {Verdict.right}
    assert Verdict.right not in check_many([("no such thing", problem) for problem in problems])
