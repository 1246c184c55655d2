"""How many answers a second the maths checker judges: simple ones, all kinds, and with 5 % that are made to hang it.

Makes docs/results/verifier.json and prints it as a table. `pairs a second` is by the clock, on whatever else the
machine does; `CPU` is what a pair cost in all our processes together, so 2 over it is what two free cores would do.

    python -m benchmarks.verifier --rounds 3
    python -m benchmarks.verifier --rounds 5 --cores 2      # on a bigger machine: these two, and a child for each
"""

import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks import command_line, start
from pipeline.places import ROOT
from pipeline.provenance import environment
from stages.rewards import checkers, sandbox

Pair = tuple[str, str]
"""Gold answer and answer."""
Make = Callable[[int], Pair]

STOPPED_BY_RULES = (
    "9^{9^{9^{9}}}",
    "9!!!!!!",
    "2^{2^{40}}",
    "(x+y+z+w)^{60}",
    r"\binom{1000000000}{500000000}",
    "(" * 3000 + "1" + ")" * 3000,
)
HARD = r"|x|+\ln y+\sin z"
STOPPED_BY_THE_CLOCK = (  # past our rules for this gold answer, and numeric.py does not read them
    "|(x+y+z+w)^{60}|",
    r"\log((x+1)^{900})",
    r"|\sin(\cos(\tan(\sin(\cos(\tan(x))))))|^{20}",
    "x + |y + (x+1)^{900}|",
    "(|x|+y+z+w)^{60}",
)


def simple(i: int) -> Pair:
    """Integers and fractions in another spelling, half of them right."""
    off = i // 2 % 2
    return (f"{i}/{i + 1}", rf"\frac{{{i}}}{{{i + 1 + off}}}") if i % 2 else (str(i), f"{i + off:,}")


def surd(i: int) -> Pair:
    """Right: one root in two spellings."""
    return rf"{i + 2}\sqrt{{2}}", rf"\sqrt{{{2 * (i + 2) ** 2}}}"


def polynomial(i: int) -> Pair:
    """Right: the product where the gold answer is the sum."""
    a, b = i % 97 + 1, i // 97 + 1
    return f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})"


def mixed(i: int) -> Pair:
    """Integers, fractions, surds and polynomials in equal parts."""
    return (simple, simple, surd, polynomial)[i % 4](i)


def through_the_library(i: int) -> Pair:
    """Right answers that only math-verify may call right."""
    return (surd, polynomial)[i % 2](i)


def hostile(make: Make, gold: str, texts: tuple[str, ...]) -> Make:
    """`make`, with one in twenty replaced by one of the texts."""
    return lambda i: (gold, f"{texts[i // 20 % len(texts)]}+{i}") if i % 20 == 10 else make(i)


KINDS: dict[str, tuple[Make, int]] = {
    "numbers": (simple, 100),
    "mixed": (mixed, 1),
    "mixed, 5 % hostile, stopped by our rules": (hostile(mixed, "x+y", STOPPED_BY_RULES), 1),
    "mixed, 5 % hostile, stopped by the clock": (hostile(mixed, HARD, STOPPED_BY_THE_CLOCK), 1),
    "all through math-verify": (through_the_library, 1),
    "all through math-verify, 5 % hostile, stopped by the clock": (
        hostile(through_the_library, HARD, STOPPED_BY_THE_CLOCK),
        1,
    ),
}


def main() -> None:
    """Judge every kind in turns, `rounds` times; report medians."""
    parser = command_line(__doc__)
    parser.add_argument("--pairs", type=int, default=400, help="pairs of each kind (numbers: 100 times as many)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, help="keep everything on so many cores")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/verifier.json")
    chosen = parser.parse_args()
    if chosen.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.cores])
        sandbox.NUM_WORKERS = max(2, chosen.cores)
    judge([("b+a", f"a+b+{i}-{i}") for i in range(2 * sandbox.NUM_WORKERS)])  # start the children
    rounds = [
        {name: measured(make, chosen.pairs * factor, first=10**5 * n) for name, (make, factor) in KINDS.items()}
        for n in range(chosen.rounds)
    ]
    summary = {name: summarised([one[name] for one in rounds]) for name in KINDS}
    record = {
        "command": " ".join(["python -m benchmarks.verifier", *sys.argv[1:]]),
        "cores_used": len(os.sched_getaffinity(0)),
        "num_workers": sandbox.NUM_WORKERS,
        "load_average": psutil.getloadavg()[0],
        **environment(),
        "kinds": summary,
    }
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(summary))


def judge(pairs: list[Pair]) -> Counter[str]:
    """Counts of verdicts; nothing is remembered from earlier pairs."""
    checkers._known.clear()
    rows = [(answer, {"prompt": "?", "answer": gold, "checker": "math"}) for gold, answer in pairs]
    return Counter(map(str, checkers.check_many(rows)))


def measured(make: Make, num_pairs: int, first: int) -> dict[str, Any]:
    pairs = [make(first + i) for i in range(num_pairs)]
    clock, cpu = time.perf_counter(), cpu_seconds()
    verdicts = judge(pairs)
    return {
        "pairs_per_s": num_pairs / (time.perf_counter() - clock),
        "cpu_ms": 1000 * (cpu_seconds() - cpu) / num_pairs,
        "verdicts": verdicts,
    }


def cpu_seconds() -> float:
    """CPU time of this process and of the children that judge, with all their copies."""
    spent = time.process_time()
    for worker in sandbox._workers:
        process = psutil.Process(worker.process.pid)
        spent += sum(process.cpu_times()[:4])  # its own, and of the copies that ended
        spent += sum(sum(copy.cpu_times()[:2]) for copy in process.children())
    return spent


def summarised(found: list[dict[str, Any]]) -> dict[str, Any]:
    median = {key: round(statistics.median(one[key] for one in found), 2) for key in ("pairs_per_s", "cpu_ms")}
    return {**median, "verdicts_of_one_round": found[0]["verdicts"]}


def table(summary: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| answers | pairs a second | CPU a pair, ms | verdicts |", "|---|---|---|---|"]
    for name, row in summary.items():
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(row["verdicts_of_one_round"].items()))
        lines.append(f"| {name} | {row['pairs_per_s']:,.0f} | {row['cpu_ms']:.2f} | {verdicts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    start(main)
