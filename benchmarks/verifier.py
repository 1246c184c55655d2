"""How many answers a second the maths checker judges: by our rules, through math-verify, and with 5 % hostile
ones.

Run: .venv/bin/python benchmarks/verifier.py [--pairs 400]
"""

import argparse
import random
import time

from stages.rewards.checkers import check_many

HOSTILE = (
    "(x+y+z+w)^{60}",
    r"(\sin(\cos(\tan(\sin(\cos(\tan(x)))))))^{20}",
    "(x+1)^{900}",
    r"x^{x^x} + 9^{999}",
)


def pair(answer: str, gold: str) -> tuple[str, dict[str, str]]:
    """One (answer, problem) for the maths checker."""
    return answer, {
        "id": "1",
        "prompt": "?",
        "answer": gold,
        "checker": "math",
        "domain": "math",
        "language": "en",
    }


def fast(i: int) -> tuple[str, dict[str, str]]:
    """Numbers, half of them right: never leaves our own rules."""
    return pair(rf"\frac{{{i}}}{{{i + 1}}}" if i % 2 else f"{i:,}", f"{i}/{i + 1}" if i % 4 == 1 else str(i))


def symbolic(i: int) -> tuple[str, dict[str, str]]:
    """Expressions in another spelling: each goes through math-verify."""
    return pair(rf"\sqrt{{{i + 2}}} + {i}x", rf"{i}x + \sqrt{{{i + 2 + i % 2}}}")


def mixed(i: int) -> tuple[str, dict[str, str]]:
    """`symbolic`, one in twenty replaced by an answer that hangs sympy."""
    return pair(f"{HOSTILE[i // 20 % len(HOSTILE)]} + {i}", "x+y") if i % 20 == 0 else symbolic(i + 100_000)


def main() -> None:
    """Print pairs per second for each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=400)
    num_pairs = parser.parse_args().pairs
    check_many([pair("a+b", "b+a"), pair("c+b", "b+c")])  # start the children
    random.seed(0)
    for name, make, factor in (
        ("our rules", fast, 100),
        ("math-verify", symbolic, 1),
        ("5 % hostile", mixed, 1),
    ):
        pairs = (
            [make(i) for i in random.sample(range(10**5), num_pairs * factor)]
            if make is not mixed
            else [make(i) for i in range(num_pairs)]
        )
        start = time.perf_counter()
        verdicts = check_many(pairs)
        seconds = time.perf_counter() - start
        shares = {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}
        print(f"{name:12s} {len(pairs) / seconds:10.0f} pairs/s   {shares}", flush=True)


if __name__ == "__main__":
    main()
