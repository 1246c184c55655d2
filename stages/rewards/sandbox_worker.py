"""The child process that judges answers with code that may hang, eat memory or run what it is given.

Reads questions `[what, gold, answer]` as JSON, one a line, on stdin; writes `"ready"`, then for each
`{"verdict": ...}` or `{"error": traceback}`.
Started by `stages/rewards/sandbox.py`; by hand:
    echo '["math", "1/2", "\\\\frac{1}{2}"]' | python -P stages/rewards/sandbox_worker.py

Limits per question: CPU seconds and memory, both kept by the kernel. The timers have no Python handler, so
they end this process even in the middle of one endless C call, which is where an alarm inside Python
(math-verify's own) fails. CPU time, not wall time: on a busy machine the same answer gets the same verdict.
It imports nothing of ours and nothing heavy, so it starts in about half a second and is cheap to lose.
"""

import ast
import builtins
import contextlib
import ctypes
import functools
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TextIO

CPU_LIMIT_S = 2.0
WALL_LIMIT_S = 30.0
MEMORY_LIMIT_BYTES = 1536 * 2**20
RIGHT_SCORE = 0.99  # reasoning_gym pays parts of a point for near misses
NONSENSE = "no idea"  # some scorers only look for the wrong word, and pay for any text without it

# What a scorer that calls eval, directly or through sympy, may evaluate: literals, arithmetic, these.
_EVAL_NODES: tuple[type[ast.AST], ...] = (ast.Expression, ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator)
_EVAL_NODES += (ast.unaryop, ast.List, ast.Tuple, ast.Name, ast.Load, ast.Call)
_EVAL_NAMES = "Symbol Integer Float Rational sqrt exp log ln Abs sin cos tan cot sec csc asin acos atan sinh cosh tanh"
_EVAL_CALLS = frozenset(_EVAL_NAMES.split())

Judge = Callable[[str, str], str]


@functools.cache
def load(what: str) -> Judge:
    """The judge of one kind of question. Imports happen here, before any timer runs."""
    return {"math": load_math, "reasoning_gym": load_reasoning_gym}[what]()


def load_math() -> Judge:
    """math-verify, without its own alarm."""
    import logging

    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def expressions(text: str) -> list[Any]:
        # Boxed, because undelimited LaTeX is read in parts: 14\pi becomes 14.
        return list(parse(rf"\boxed{{{text}}}", parsing_timeout=None))

    @functools.lru_cache(maxsize=1024)
    def usable(gold: str) -> list[Any]:
        golds = expressions(gold)
        return golds if golds and verify(golds, golds, timeout_seconds=None) else []

    def judge(gold: str, answer: str) -> str:
        golds = usable(gold)
        if not golds:
            return "gold_unusable"
        right = bool(answer) and verify(golds, expressions(answer), timeout_seconds=None)
        return "right" if right else "wrong"

    return judge


def load_reasoning_gym() -> Judge:
    """reasoning_gym's own scorers."""
    import reasoning_gym

    scorer = functools.cache(reasoning_gym.get_score_answer_fn)

    def is_paid(answer: str, gold: dict[str, Any]) -> bool:
        try:
            return scorer(gold["task"])(answer, gold["entry"]) >= RIGHT_SCORE
        except MemoryError:
            raise
        except Exception:  # what a scorer can not read, it may raise about
            return False

    @functools.lru_cache(maxsize=1024)
    def usable(text: str) -> dict[str, Any] | None:
        gold = json.loads(text)
        if gold["task"] not in reasoning_gym.factory.DATASETS:
            return None
        own = gold["entry"].get("answer")
        return gold if (own is None or is_paid(own, gold)) and not is_paid(NONSENSE, gold) else None

    def judge(gold: str, answer: str) -> str:
        fields = usable(gold)
        if fields is None:
            return "gold_unusable"
        return "right" if is_paid(answer, fields) else "wrong"

    return judge


@contextlib.contextmanager
def arithmetic_eval() -> Iterator[None]:
    """Let `eval` see arithmetic only: some scorers call it on the model's text, others through
    sympy.parse_expr.
    """
    real = builtins.eval

    def guarded(source: Any, *scopes: Any) -> Any:
        tree = ast.parse(source.strip() if isinstance(source, str) else "", mode="eval")
        if not all(map(_may_be_evaluated, ast.walk(tree))):
            raise ValueError("not plain arithmetic")
        return real(compile(tree, "<answer>", "eval"), *(scopes or ({"__builtins__": {}},)))

    builtins.eval = guarded
    try:
        yield
    finally:
        builtins.eval = real


def _may_be_evaluated(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _EVAL_CALLS and not node.keywords
    return isinstance(node, _EVAL_NODES)


def reply_to(question: list[str]) -> dict[str, str]:
    """One verdict. What a library raises about a text is `cannot_tell`; failing to load it is an error."""
    what, gold, answer = question
    try:
        judge = load(what)
    except Exception:
        return {"error": traceback.format_exc()}
    try:
        with time_limit(), arithmetic_eval():
            return {"verdict": judge(gold, answer)}
    except MemoryError:
        os._exit(1)  # what is left of the heap is not to be trusted
    except Exception:
        return {"verdict": "cannot_tell"}


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """End this process (SIGPROF, SIGALRM; both without a handler) when the work inside takes too long."""
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    signal.setitimer(signal.ITIMER_REAL, WALL_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def confine() -> TextIO:
    """Set the limits of this process; return the channel for replies (libraries print to stdout)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for our parent, whose end closes stdin and so ends us
    limits = {resource.RLIMIT_AS: MEMORY_LIMIT_BYTES, resource.RLIMIT_FSIZE: 2**20, resource.RLIMIT_CORE: 0}
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (value if hard < 0 else min(value, hard), hard))
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device, not a path
        os.dup2(nowhere.fileno(), 1)
    return replies


def die_with_parent() -> None:
    """If our parent is killed in the middle of a question, go too (Linux; elsewhere the time limit sees to
    it).
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main() -> None:
    """Answer questions until stdin closes."""
    die_with_parent()
    replies = confine()
    print(json.dumps("ready"), file=replies)
    for line in sys.stdin:
        print(json.dumps(reply_to(json.loads(line))), file=replies)


if __name__ == "__main__":
    main()
