"""The child process that judges answers with code that may hang, eat memory or run what it is given.

    python -P sandbox_worker.py WHAT        # WHAT: math or reasoning_gym

Reads questions `[number, gold, answer, cpu_limit_s]` as JSON, one a line, on stdin; writes `"ready"`, then for each
`{"to": number, "verdict": ...}`, or `"ended": "time"` or `"ended": "crash"` when the judging was cut off. If the judge
does not load it writes `{"error": traceback}` and leaves. Started by `stages/rewards/sandbox.py`; by hand:
    echo '[1, "1/2", "\\\\frac{1}{2}", 1]' | python -P stages/rewards/sandbox_worker.py math

Two processes: this one loads the libraries, which takes half a second, and never judges; a forked copy of it judges,
and when a question kills the copy the next is forked in milliseconds. So a hanging answer costs its own limit and no
more. Limits: CPU seconds and wall seconds per question, memory per copy, all kept by the kernel. The timers have no
Python handler, so they end the copy even in the middle of one endless C call, which is where an alarm inside Python
(math-verify's own) fails. CPU time decides, not wall time: on a busy machine the same answer gets the same verdict.
It imports nothing of ours and nothing heavy.
"""

import ast
import builtins
import contextlib
import ctypes
import functools
import gc
import json
import mmap
import os
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

GOLD_LIMIT_S = 2.0  # of CPU time; the limit for an answer comes with the question
WALL_LIMIT_S = 30.0
MEMORY_LIMIT_BYTES = 2**30
QUESTIONS_PER_COPY = 2000  # then a fresh one: the parser's tables only ever grow
OUT_OF_MEMORY, STDIN_CLOSED, WORN_OUT = 70, 71, 72  # how a copy ends by itself
RIGHT_SCORE = 0.99  # reasoning_gym pays parts of a point for near misses
NONSENSE = "no idea"  # some scorers only look for the wrong word, and pay for any text without it

# What a scorer that calls eval, directly or through sympy, may evaluate: literals, arithmetic, these.
_EVAL_NODES: tuple[type[ast.AST], ...] = (ast.Expression, ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator)
_EVAL_NODES += (ast.unaryop, ast.List, ast.Tuple, ast.Name, ast.Load, ast.Call)
_EVAL_NAMES = "Symbol Integer Float Rational sqrt exp log ln Abs sin cos tan cot sec csc asin acos atan sinh cosh tanh"
_EVAL_CALLS = frozenset(_EVAL_NAMES.split())

NUMBER = struct.Struct("=Q")
TIME_IS_UP = (signal.SIGPROF, signal.SIGALRM)


class Judge(NamedTuple):
    """How to judge: read the gold answer (None: it can not be used), then compare an answer with what was read."""

    read_gold: Callable[[str], Any]
    compare: Callable[[Any, str], str]


# Each shape once, so that the parser's tables are filled before the first copy is made.
WARM_UP = (
    r"\frac{1}{2}x^2+\sqrt{3}",
    r"(-\infty, 3]\cup\{1,2\}",
    r"2\sin x + \log_2 3 - e^{i\pi}",
    r"x = 3 \text{ or } 4",
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
    r"\left[2, \frac{5}{3}\right)",
    r"n(n+1)(2n-1)^{-2}/6",
    r"\left( 3, \frac{5\pi}{2} \right)",
    r"-17\sqrt{32} + |y|",
    "x<3",
    "x^2+3x+2",
    "(x+1)(x-2)",
    r"2\sqrt{3}",
    r"\sqrt{48}",
    r"|x|-\ln y",
)


def read_faster() -> None:
    """Lets math-verify's reader of LaTeX come to the same expression with two thirds of the work.

    In two stages, as ANTLR advises: predictions that do not look at the context find the same tree or none, and only
    then those are made that do. And whole numbers without `from sympy import *` for each.
    """
    from antlr4.atn.PredictionMode import PredictionMode
    from antlr4.error.Errors import ParseCancellationException
    from antlr4.error.ErrorStrategy import BailErrorStrategy
    from latex2sympy2_extended import latex2sympy2 as reader
    from sympy import Integer

    thorough, any_number = reader.PSParser.math, reader._Latex2Sympy.parse_number

    def math(parser: Any) -> Any:
        usual = parser._errHandler
        parser._interp.predictionMode, parser._errHandler = PredictionMode.SLL, BailErrorStrategy()
        try:
            return thorough(parser)
        except ParseCancellationException:
            parser.reset()
            parser._interp.predictionMode, parser._errHandler = PredictionMode.LL, usual
            return thorough(parser)

    def number(reading: Any, text: str) -> Any:
        return Integer(int(text)) if text.isascii() and text.isdigit() else any_number(reading, text)

    reader.PSParser.math, reader._Latex2Sympy.parse_number = math, number


def load_math() -> Judge:
    """math-verify, without its own alarm."""
    import logging

    from math_verify import parse, verify
    from sympy import Expr

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    read_faster()

    def expressions(text: str) -> list[Any]:
        # Boxed, because undelimited LaTeX is read in parts: 14\pi becomes 14.
        return list(parse(rf"\boxed{{{text}}}", parsing_timeout=None))

    @functools.lru_cache(maxsize=1024)
    def read_gold(gold: str) -> list[Any] | None:
        golds = expressions(gold)
        return golds if golds and verify(golds, golds, timeout_seconds=None) else None

    def is_zero(gold: Any, found: Any) -> bool:
        """Equal after multiplying out, which math-verify would find too, by simplifying for ten times as long."""
        return isinstance(gold, Expr) and isinstance(found, Expr) and (gold - found).expand() == 0

    def compare(golds: list[Any], answer: str) -> str:
        found = expressions(answer) if answer else []
        if found and (is_zero(golds[0], found[0]) or verify(golds, found, timeout_seconds=None)):
            return "right"
        return "cannot_tell" if answer and all(isinstance(one, str) for one in found) else "wrong"

    for text in WARM_UP:
        compare(read_gold(text) or [], text)
    return Judge(read_gold, compare)


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
    def read_gold(text: str) -> dict[str, Any] | None:
        gold = json.loads(text)
        if gold["task"] not in reasoning_gym.factory.DATASETS:
            return None
        own = gold["entry"].get("answer")
        return gold if (own is None or is_paid(own, gold)) and not is_paid(NONSENSE, gold) else None

    def compare(gold: dict[str, Any], answer: str) -> str:
        return "right" if is_paid(answer, gold) else "wrong"

    return Judge(read_gold, compare)


@contextlib.contextmanager
def arithmetic_eval() -> Iterator[None]:
    """Let `eval` see arithmetic only: some scorers call it on the model's text, others through sympy.parse_expr."""
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


JUDGES: dict[str, Callable[[], Judge]] = {"math": load_math, "reasoning_gym": load_reasoning_gym}


def verdict_on(judge: Judge, gold: str, answer: str, cpu_limit_s: float) -> str:
    """One verdict. What a library raises about a text is `cannot_tell`."""
    try:
        with arithmetic_eval():
            with time_limit(GOLD_LIMIT_S):
                known = judge.read_gold(gold)
            with time_limit(cpu_limit_s):
                return "gold_unusable" if known is None else judge.compare(known, answer)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # what is left of the heap is not to be trusted
    except Exception:
        return "cannot_tell"


@contextlib.contextmanager
def time_limit(cpu_limit_s: float) -> Iterator[None]:
    """End this process (SIGPROF, SIGALRM; both without a handler) when the work inside takes too long."""
    signal.setitimer(signal.ITIMER_PROF, cpu_limit_s)
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
    """If our parent is killed in the middle of a question, go too (Linux; elsewhere the time limit sees to it)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def answer_questions(judge: Judge, replies: TextIO, read: mmap.mmap) -> int:
    """Reply to questions until stdin closes or this copy is worn out; says which. `read` keeps the last number."""
    for _ in range(QUESTIONS_PER_COPY):
        line = sys.stdin.readline()
        if not line:
            return STDIN_CLOSED
        number, *question = json.loads(line)
        read[:] = NUMBER.pack(number)
        print(json.dumps({"to": number, "verdict": verdict_on(judge, *question)}), file=replies)
    return WORN_OUT


def run_copy(judge: Judge, replies: TextIO, read: mmap.mmap) -> int:
    """Let a forked copy answer questions; how it ended: an exit code, or the negative number of a signal."""
    copy = os.fork()
    if copy == 0:
        die_with_parent()
        os._exit(answer_questions(judge, replies, read))
    return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])


def main() -> None:
    """Answer questions until stdin closes."""
    die_with_parent()
    replies = confine()
    try:
        judge = JUDGES[sys.argv[1]]()
    except Exception:
        print(json.dumps({"error": traceback.format_exc()}), file=replies)
        return
    gc.collect()
    gc.freeze()  # what is loaded now stays, and is shared with the copies
    print(json.dumps("ready"), file=replies)
    read = mmap.mmap(-1, NUMBER.size)  # shared with the copies: the number of the question that was read last
    while (end := run_copy(judge, replies, read)) != STDIN_CLOSED:
        if end != WORN_OUT:
            why = "time" if -end in TIME_IS_UP else "crash"
            print(json.dumps({"to": NUMBER.unpack(read[:])[0], "ended": why}), file=replies)


if __name__ == "__main__":
    main()
