"""Code rewards: right programs pass, nothing else does, and no program reaches anything of ours.

Skipped where no box holds, but for the tests that say so.
"""

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from pipeline.errors import ResourceError
from stages.chat import parse
from stages.rewards import Sample, box, code_tests
from stages.rewards.binary_code import BinaryCode
from stages.rewards.box import KINDS, Box, the_box
from stages.rewards.checkers import Verdict, check, check_many
from stages.rewards.code import Code
from stages.rewards.code_tests import MAX_CHARS, program_of, read_gold, verdict

T = TypeVar("T")
PYTHONS = list(dict.fromkeys(Path(path).resolve() for path in (sys.executable, "/usr/bin/python3")))
PROMPT = "from typing import List\n\ndef twice(xs: List[int]) -> List[int]:\n    '''Each number, doubled.'''\n"
TEST = "def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n    assert candidate([]) == []\n"
GOLD = json.dumps({"prompt": PROMPT, "test": TEST, "entry_point": "twice"})
WHOLE = "def twice(xs):\n    return [2 * x for x in xs]"


def verdicts(pairs: list[tuple[str, str]]) -> list[Verdict]:
    """Of each (answer, gold), as evaluation and the rewards ask for them."""
    return check_many([(one, {"id": "1", "prompt": "?", "answer": gold, "checker": "code"}) for one, gold in pairs])


def boxes() -> list[Box]:
    """Every box that holds on this machine."""
    return [one for kind in KINDS for python in PYTHONS if box.fault(one := Box(kind, python)) is None]


@pytest.fixture(scope="module")
def held() -> list[Box]:
    found = boxes()
    if not found:
        pytest.skip("no box holds on this machine: install bubblewrap (`apt install bubblewrap`)")
    return found


@pytest.fixture(params=KINDS)
def in_a_box(request: pytest.FixtureRequest, held: list[Box], monkeypatch: pytest.MonkeyPatch) -> Box:
    """The test runs in each kind of box."""
    one = next((one for one in held if one.kind == request.param), None)
    if one is None:
        pytest.skip(f"{request.param} does not hold on this machine")
    monkeypatch.setattr("stages.rewards.code_tests.the_box", lambda: one)
    return one


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        f"Doubling is easy:\n```python\n{WHOLE}\n```\nand that is all.",
        "```python\nwrong = 1\n```\nbetter:\n```py\ndef twice(xs):\n    return [x + x for x in xs]\n```",
        "    return [2 * x for x in xs]",
        "return [2 * x for x in xs]",
        "result = []\n    for x in xs:\n        result.append(2 * x)\n    return result",
        "import math\ntwice = lambda xs: [math.prod((2, x)) for x in xs]",
        "print('noise' * 1000)\n" + WHOLE,
    ],
)
def test_a_right_program_passes_however_it_is_written(in_a_box: Box, answer: str) -> None:
    assert verdict(answer, GOLD) == "right"


TO_EVERY_FILE = "import os\nfor fd in range(3, 64):\n    try: os.write(fd, {})\n    except OSError: pass\n"
CHEATS = {
    "no answer": "",
    "a wrong program": "def twice(xs): return xs",
    "no program": "I would double each number.",
    "it does not parse": "def twice(xs: return",
    "it raises": "def twice(xs): raise AssertionError",
    "it leaves early": "import sys\nsys.exit(0)",
    "it leaves early and at once": "import os\nos._exit(0)",
    "it leaves when it is called": "def twice(xs):\n    import os\n    os._exit(0)",
    "it raises SystemExit when it is called": "def twice(xs): raise SystemExit(0)",
    "equal to everything": "class Any(list):\n    __eq__ = lambda *_: True\ndef twice(xs): return Any([7])",
    "equal to everything, and no plain value": "class Any:\n    __eq__ = lambda *_: True\ndef twice(xs): return Any()",
    "another check": "def check(candidate): pass\ndef twice(xs): return xs",
    "asserts switched off": "__debug__ = False",
    "builtins exchanged": "import builtins\nbuiltins.AssertionError = ValueError\ndef twice(xs): return xs",
    "it looks for its tests": (
        "def twice(xs):\n    import gc\n    [f for f in gc.get_objects() if getattr(f, '__name__', '') == 'check'][0]"
    ),
    "answers before they are asked": TO_EVERY_FILE.format(b"(True, [2, 4])\n" * 2) + "def twice(xs): return None",
    "a reply that is no literal": TO_EVERY_FILE.format(b"__import__('os')\n"),
    "a reply without end": "def twice(xs): return 'x' * 10_000_000",
    "a deep reply": "def twice(xs):\n    x = []\n    for _ in range(100_000): x = [x]\n    return x",
    "an endless recursion": "def twice(xs): return twice(xs)",
    "null bytes": "def twice(xs): return \x00",
    "surrogates": "def twice(xs): return '\ud800'",
    "too long": WHOLE + "\n#" + "x" * MAX_CHARS,
    "much memory": "def twice(xs): return len(bytearray(4 * 2**30))",
    "memory, slowly": "xs = []\nwhile True: xs.append(bytearray(10**6))",
    "a fork bomb": "import os\nwhile True: os.fork()",
    "threads without end": "import threading\nwhile True: threading.Thread(target=input).start()",
    "standard output without end": "import os\nfor _ in range(1000): os.write(1, b'x' * 10**6)",
    "it ends everything it may": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "it becomes another program": "import os\nos.execv('/bin/true', ['true'])",
    "a crash": "import ctypes\nctypes.string_at(0)",
}


@pytest.mark.parametrize("answer", CHEATS.values(), ids=CHEATS)
def test_no_other_program_passes_and_none_does_harm(in_a_box: Box, answer: str) -> None:
    started = time.monotonic()
    assert verdict(answer, GOLD) in ("wrong", "cannot_tell")
    assert time.monotonic() - started < box.WALL_LIMIT_S + 5


@pytest.mark.parametrize(
    "program", ["while True: pass", "import time\ntime.sleep(1000)", "import sys\nsys.stdin.read()"]
)
def test_a_program_without_end_is_ended(in_a_box: Box, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "WALL_LIMIT_S", 2)
    started = time.monotonic()
    assert verdict(f"def twice(xs):\n    {program.replace(chr(10), chr(10) + '    ')}", GOLD) in (
        "wrong",
        "cannot_tell",
    )
    assert time.monotonic() - started < 8
    assert not children()


def test_a_box_that_is_none_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The attacks are real: without walls and without giving up rights nearly all of them work."""
    inside = tmp_path / "inside.py"
    inside.write_text(box._INSIDE.read_text().replace("    confine(int(parent), readable)\n", ""))
    monkeypatch.setattr(box, "_INSIDE", inside)
    worked = set(str(box.fault(Box("landlock", PYTHONS[0]))).removeprefix("it does not hold: ").split(", "))
    names = "read_files read_through_a_symlink list_folders write_files change_a_mode connect_by_tcp start_processes"
    assert {*names.split(), "signal_us", "have_no_limits"} <= worked


GUARDS = {"limits": "    limit()\n", "the list of system calls": "        refuse_syscalls()\n"}


@pytest.mark.parametrize("missing", GUARDS.values(), ids=GUARDS)
def test_a_box_that_lacks_one_guard_is_found_out(
    missing: str, held: list[Box], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = next((one for one in held if one.kind == "landlock"), None)
    if one is None:
        pytest.skip("landlock does not hold on this machine")
    source = box._INSIDE.read_text()
    assert missing in source
    inside = tmp_path / "inside.py"
    inside.write_text(source.replace(missing, missing.replace(missing.strip(), "pass")))
    monkeypatch.setattr(box, "_INSIDE", inside)
    assert str(box.fault(one)).startswith("it does not hold: ")


def test_where_no_box_holds_code_rewards_refuse_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "fault", lambda one: "bwrap is not installed")
    the_box.cache_clear()
    try:
        with pytest.raises(ResourceError, match=r"code rewards do not start .bubblewrap: bwrap is not installed"):
            Code().check_machine()
        with pytest.raises(ResourceError, match="apt install bubblewrap"):
            verdict(WHOLE, GOLD)
    finally:
        the_box.cache_clear()


def test_a_box_dies_with_the_process_that_started_it(in_a_box: Box, tmp_path: Path) -> None:
    call = "from pathlib import Path\nfrom stages.rewards import code_tests\nfrom stages.rewards.box import Box\n"
    call += f"code_tests.the_box = lambda: Box({in_a_box.kind!r}, Path({str(in_a_box.python)!r}))\n"
    endless = "import time\ntime.sleep(1000)\ndef twice(xs): ..."
    call += f"print('now', flush=True)\ncode_tests.verdict({endless!r}, {GOLD!r})"
    started = subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE)
    assert started.stdout and started.stdout.readline() == b"now\n"
    inside = wait_for(lambda: children(started.pid))
    started.kill()
    started.communicate()
    assert inside and wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside))


@pytest.mark.parametrize(
    "gold",
    [
        "",
        "[]",
        "42",
        "{}",
        json.dumps({"prompt": PROMPT, "test": "", "entry_point": "twice"}),
        json.dumps({"prompt": PROMPT, "test": TEST, "entry_point": "__import__('os')"}),
        json.dumps({"prompt": PROMPT, "test": TEST, "entry_point": 3}),
        "[" * 100_000,
    ],
)
def test_a_gold_without_tests_is_unusable_and_nothing_is_run_for_it(gold: str) -> None:
    assert read_gold(gold) is None
    assert check("", {"id": "1", "prompt": "?", "answer": gold, "checker": "code"}) is Verdict.gold_unusable


def test_tests_that_cannot_run_are_the_data_s_fault(in_a_box: Box) -> None:
    broken = json.dumps({"prompt": PROMPT, "test": "import numpy_is_not_there\n" + TEST, "entry_point": "twice"})
    assert verdict(WHOLE, broken) == "gold_unusable"


def test_a_body_gets_its_indent_back_and_a_whole_function_is_left_alone() -> None:
    assert program_of("return 1", "def f():", "f") == "def f():\n    return 1"
    assert program_of("```Python3\nreturn 1```", "def f():", "f") == "def f():\n    return 1"
    assert program_of("    return 1", "def f():", "f") == "def f():\n    return 1"
    assert program_of("def f(): return 2", "def f():\n  'it'", "f") == "def f():\n  'it'\ndef f(): return 2"


def test_the_reward_is_for_code_problems_only_and_keeps_its_order(in_a_box: Box) -> None:
    answers, row = [WHOLE, "return xs", WHOLE], {"id": "1", "prompt": "?", "domain": "code", "language": "en"}
    samples = [
        Sample(
            row | {"answer": GOLD, "checker": "code"},
            parse(f"<think> x </think><answer>\n{one}\n</answer>"),
            9,
            False,
            99,
        )
        for one in answers
    ]
    assert Code().score_many(samples) == BinaryCode().score_many(samples) == [1.0, 0.0, 1.0]
    assert not Code().applies(Sample(row | {"answer": "3", "checker": "math"}, parse("3"), 9, False, 99))


def test_many_programs_side_by_side_leave_nothing_behind(in_a_box: Box) -> None:
    pairs = [(WHOLE if i % 2 else "def twice(xs): return 1", GOLD) for i in range(12)]
    num_open = num_open_files()
    assert verdicts(pairs) == ["wrong", "right"] * 6
    assert num_open_files() == num_open and not children()


def test_evaluation_runs_programs_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    met = threading.Barrier(min(2, os.cpu_count() or 1))
    monkeypatch.setattr(code_tests, "_run", lambda program, task: 0 if met.wait(timeout=10) >= 0 else 1)
    assert verdicts([(WHOLE, GOLD)] * 2) == ["right", "right"]


def test_every_solution_of_humaneval_passes_and_none_does_without_its_body(held: list[Box], real_data: Path) -> None:
    with gzip.open(real_data / "humaneval/HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file][::8]
    golds = [json.dumps({name: row[name] for name in ("prompt", "test", "entry_point")}) for row in rows]
    assert set(verdicts([(row["canonical_solution"], gold) for row, gold in zip(rows, golds, strict=True)])) == {
        "right"
    }
    assert set(verdicts([("return None", gold) for gold in golds])) == {"wrong"}


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_for(found: Callable[[], T]) -> T:
    """What `found` gives as soon as it is true, or after a minute."""
    for _ in range(1200):
        if value := found():
            return value
        time.sleep(0.05)
    return found()


def children(parent: int | None = None) -> list[int]:
    """Processes with a box inside them that a process (we) has started."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                is_box = b"The inside of a box" in (folder / "cmdline").read_bytes()
                started_by = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if is_box and started_by == (parent or os.getpid()):
                found.append(int(folder.name))
    return found
