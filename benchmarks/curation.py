"""How many rows a second curation filters, deduplicates and decontaminates, and at which peak of memory.

Rows are generated: word problems with reasoning traces, among them known numbers of every kind that must go. The script
fails if what is found is not what was planted. Rates do not hold the generation of the texts, which are chosen from
sentences made before; writing the rows that stay is part of them. `rows_per_cpu_second` holds everything, generation
and start too, and does not depend on what else the machine does.

    python -m benchmarks.curation --rows 100000 --chars 4000      # writes docs/results/curation-100000-4000.json
"""

import argparse
import json
import os
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks import command_line, start
from pipeline.places import ROOT
from pipeline.provenance import environment
from stages.chat import TEMPLATES
from stages.curation import Rules, curate

SYLLABLES = "ba co du fe gi ho ka le mi no pa qui ro su ta ve wo xi ye zu bra cle dri flo gru pli sto tre"
ASK = "Give the answer as a whole number, and write the final result in lowest terms where it is a fraction."
PLANTED = {  # share of the rows
    "duplicate": 0.02,
    "near_duplicate": 0.01,
    "contaminated": 0.002,
    "mixed_languages": 0.01,
    "code_blocks": 0.01,
    "repetition": 0.01,
    "not_well_formed": 0.01,
}
NUM_BENCHMARK = 2000


class Texts:
    """Problems and traces by number: the same number gives the same text."""

    def __init__(self, chars: int) -> None:
        rng = random.Random(0)
        syllables = SYLLABLES.split()
        self._words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(6000)]
        self._sentences = [self._sentence(rng) for _ in range(20_000)]
        self._per_trace = max(1, chars // 70)

    def problem(self, number: int) -> str:
        """About 90 words, with numbers of its own, and a request at its end that thousands share."""
        rng = random.Random(number)
        said = " ".join(rng.choices(self._words, k=60))
        return (
            f"In {said} there are {number} and {rng.randint(2, 999)}. How many {rng.choice(self._words)} is that? {ASK}"
        )

    def response(self, number: int, kind: str) -> str:
        """A trace in paragraphs of four sentences, spoiled as `kind` says."""
        rng = random.Random(f"response {number}")
        said = rng.sample(self._sentences, self._per_trace)
        if kind == "mixed_languages":
            said = [sentence if n % 2 else "我们再看一遍这个问题，数一数有多少个。" for n, sentence in enumerate(said)]
        if kind == "repetition":
            said = said[: len(said) // 2] * 2
        if kind == "code_blocks":
            said[0] = "```python\nprint(1)\n```"
        reasoning = "\n\n".join(" ".join(said[i : i + 4]) for i in range(0, len(said), 4))
        response = TEMPLATES["chat"].response(reasoning, str(number))
        return response.replace("</think>", "") if kind == "not_well_formed" else response

    def _sentence(self, rng: random.Random) -> str:
        return " ".join(rng.choices(self._words, k=11)).capitalize() + f" {rng.randint(2, 999)}."


def rows(texts: Texts, count: int, planted: Counter[str]) -> Iterator[dict[str, str]]:
    """`count` rows; what is planted among them is counted."""
    rng = random.Random(1)
    kinds, weights = [*PLANTED, "good"], [*PLANTED.values(), 1 - sum(PLANTED.values())]
    good: list[int] = []
    for number in range(count):
        kind = rng.choices(kinds, weights)[0] if len(good) > 100 else "good"
        prompt = texts.problem(NUM_BENCHMARK + number)
        if kind == "duplicate":
            prompt = texts.problem(rng.choice(good)).upper() + " "
        elif kind == "near_duplicate":
            prompt = texts.problem(good.pop(rng.randrange(len(good)))).replace("there are", "they have")
        elif kind == "contaminated":
            prompt = f"Here is one from a book. {texts.problem(planted['contaminated'])}"
        elif kind == "good":
            good.append(NUM_BENCHMARK + number)
        planted[kind] += 1
        response = texts.response(number, kind)
        yield {"id": str(number), "prompt": prompt, "response": response, "domain": "math", "language": "en"}


def timed(source: Iterator[dict[str, str]], seconds: list[float]) -> Iterator[dict[str, str]]:
    """The same rows; the time that making them took is added to `seconds[0]`."""
    while True:
        started = time.perf_counter()
        row = next(source, None)
        seconds[0] += time.perf_counter() - started
        if row is None:
            return
        yield row


def main() -> None:
    """Runs it once, prints and writes the record."""
    parser = command_line(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--chars", type=int, default=4000, help="characters of a response")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    texts, planted, generating = Texts(options.chars), Counter[str](), [0.0]
    benchmarks = {"held-out": [texts.problem(number) for number in range(NUM_BENCHMARK)]}
    with tempfile.TemporaryDirectory() as folder:
        source = timed(rows(texts, options.rows, planted), generating)
        started = time.perf_counter()
        counts = curate(source, Path(folder), Rules(), benchmarks, options.processes)
        seconds = time.perf_counter() - started
        written = sum(file.stat().st_size for file in Path(folder).iterdir())
    record = _record(options, seconds, generating[0], written, counts, planted)
    file = ROOT / f"docs/results/curation-{options.rows}-{options.chars}.json"
    file.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    if wrong := {kind: planted[kind] for kind in PLANTED if counts["rows"].get(kind, 0) != planted[kind]}:
        raise SystemExit(f"planted and not found to the number: {wrong}")


def _record(
    options: argparse.Namespace,
    seconds: float,
    generating: float,
    written: int,
    counts: dict[str, object],
    planted: Counter[str],
) -> dict[str, object]:
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_here, cpu_there = (used.ru_utime + used.ru_stime for used in (own, others))
    rate = options.rows / (seconds - generating)
    return {
        "rows": options.rows,
        "mean_response_chars": options.chars,
        "processes": options.processes,
        "seconds": round(seconds, 1),
        "seconds_making_the_texts": round(generating, 1),
        "rows_per_second": round(rate),
        "rows_per_second_with_making_the_texts": round(options.rows / seconds),
        "minutes_for_a_million_rows": round(1e6 / rate / 60, 1),
        "rows_per_cpu_second": round(options.rows / (cpu_here + cpu_there)),
        "cpu_seconds": {"this_process": round(cpu_here, 1), "others": round(cpu_there, 1)},
        "peak_mib": {"this_process": round(own.ru_maxrss / 1024), "largest_other": round(others.ru_maxrss / 1024)},
        "written_mib": round(written / 2**20),
        "counts": counts,
        "planted": dict(planted),
        "load_at_end": os.getloadavg()[0],
        **environment(),
    }


if __name__ == "__main__":
    start(main)
