"""Who is right where the checkers of mathematical answers disagree: math-verify, our own reader, and another's labels.

Reads `answer_pairs/` and `multi_sample/` under R1_DATA (1,800 real completions) and `audit_decisions.yaml`; makes
docs/results/verifier-audit.md. Leaves with exit code 1 if there is a disagreement that nobody has decided, or if our
verdict is not the one that was decided.

    R1_DATA=/path/to/data python -m benchmarks.audit_verifier
"""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import yaml

from benchmarks import command_line, start
from pipeline.errors import DataError
from pipeline.places import ROOT
from pipeline.sources import data_folder
from stages import chat
from stages.rewards import checkers, math_answer, numeric, sandbox

UNREAD = "–"
RIGHT, WRONG = "right", "wrong"
PAGE = ROOT / "docs/results/verifier-audit.md"
DECISIONS = Path(__file__).with_name("audit_decisions.yaml")

INTRO = """# Who is right where the checkers disagree

1,000 single answers to MATH problems by two models (`answer_pairs`) and 800 whole solutions, eight to a problem
(`multi_sample`, with another grader's labels), judged by three checkers that know nothing of each other:

- **math-verify** alone, on the extracted answer, in the sandbox;
- **ours**, `stages/rewards/numeric.py`, which puts numbers in for letters and compares floating-point values
  (– where it can not read one of the texts);
- **the label** of the other grader (– where there is none).

**Verdict** is what the reward pays by: our rules, then `numeric.py` may refuse, then math-verify must agree. Every
disagreement was decided by hand. Made by `R1_DATA=… python -m benchmarks.audit_verifier`.
"""


class Row(NamedTuple):
    """One completion with all its verdicts."""

    name: str
    gold: str
    answer: str | None
    label: str
    math_verify: str
    own: str
    verdict: str

    def is_disputed(self) -> bool:
        """Whether two checkers or the label contradict each other; not being able to tell contradicts nobody."""
        said = {RIGHT: RIGHT, WRONG: WRONG}
        return len({said[one] for one in self[3:] if one in said}) > 1 or (
            self.verdict != self.math_verify and UNREAD not in (self.verdict, self.math_verify)
        )


class Decision(NamedTuple):
    """What a person decided."""

    right: bool
    accepted: bool
    why: str


def main() -> int:
    """Judge, compare, write the page."""
    command_line(__doc__).parse_args()
    folder = data_folder()
    if folder is None or not (folder / "answer_pairs").is_dir():
        raise DataError("R1_DATA does not name a folder with answer_pairs/ and multi_sample/", "set R1_DATA=FOLDER")
    decisions = {
        name: Decision(entry["right"], entry["accepted"], entry["why"])
        for entry in yaml.safe_load(DECISIONS.read_text())
        for name in entry["rows"]
    }
    rows = judged(completions(folder))
    disputed = [row for row in rows if row.is_disputed()]
    PAGE.write_text(page(rows, disputed, decisions))
    open_ones = [row.name for row in disputed if row.name not in decisions]
    changed = [r.name for r in rows if r.name in decisions and (r.verdict == RIGHT) != decisions[r.name].accepted]
    print(f"{len(rows)} completions, {len(disputed)} disputed; undecided: {open_ones}; not as decided: {changed}")
    return 1 if open_ones or changed else 0


class Completion(NamedTuple):
    """What a model wrote, and what is known of it; no question = the files do not tell."""

    name: str
    gold: str
    text: str
    label: str
    question: str = "?"


def completions(folder: Path) -> list[Completion]:
    found = [
        Completion(f"{model} {i}", row["answer"], row["prediction"], UNREAD)
        for model in ("qwen3", "gpt")
        for i, row in enumerate(json.loads((folder / f"answer_pairs/math500_{model}_answers.json").read_text()))
    ]
    for line in (folder / "multi_sample/qwen_math_cot_100x8.jsonl").read_text().splitlines():
        row = json.loads(line)
        for i, (text, is_right) in enumerate(zip(row["code"], row["score"], strict=True)):
            label = RIGHT if is_right else WRONG
            found.append(Completion(f"multi {row['idx']}.{i}", row["gt"], text, label, row["question"]))
    return found


def judged(found: list[Completion]) -> list[Row]:
    """Every completion with the verdict of each checker."""
    answers = [chat.parse(one.text).answer for one in found]
    problems = [{"id": one.name, "prompt": one.question, "answer": one.gold, "checker": "math"} for one in found]
    verdicts = checkers.check_many(list(zip(answers, problems, strict=True)))
    library = sandbox.ask_many(
        [sandbox.Question("math", one.gold, answer or "") for one, answer in zip(found, answers, strict=True)]
    )
    return [
        Row(one.name, one.gold, answer, one.label, theirs, own_verdict(answer, one.gold), str(verdict))
        for one, answer, theirs, verdict in zip(found, answers, library, verdicts, strict=True)
    ]


def own_verdict(answer: str | None, gold: str) -> str:
    same = None if answer is None else numeric.same_value(math_answer.clean(answer), math_answer.clean(gold))
    return {None: UNREAD, True: RIGHT, False: WRONG}[same]


def page(rows: list[Row], disputed: list[Row], decisions: dict[str, Decision]) -> str:
    """The page as Markdown."""
    counts = Counter(row[3:] for row in rows)
    lines = [INTRO, f"## {len(rows):,} completions, {len(disputed)} of them disputed\n"]
    lines += ["| label | math-verify | ours | verdict | completions |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(said)} | {count} |" for said, count in counts.most_common()]
    lines += ["", "## Every disputed answer, and what was decided\n"]
    lines += ["| completion | gold | answer | label | math-verify | ours | verdict | by hand |", "|---" * 8 + "|"]
    for row in disputed:
        decided = decisions.get(row.name)
        by_hand = (
            f"{RIGHT if decided.right else WRONG}, {'paid' if decided.accepted else 'not paid'}" if decided else "?"
        )
        answer = UNREAD if row.answer is None else code(row.answer)
        lines.append(f"| {row.name} | {code(row.gold)} | {answer} | {' | '.join(row[3:])} | {by_hand} |")
    lines += ["", "## Why\n"]
    for why, names in grouped(disputed, decisions).items():
        lines.append(f"- {', '.join(names)}: {why}")
    unread = [row for row in rows if row.verdict == "cannot_tell"]
    lines += ["", f"## Not readable ({len(unread)}, counted apart and not paid)\n"]
    lines += [f"- {row.name}: gold {code(row.gold)}, answer {code(row.answer or '')}" for row in unread]
    return "\n".join(lines) + "\n"


def grouped(disputed: list[Row], decisions: dict[str, Decision]) -> dict[str, list[str]]:
    """The names that share a decision, under its reason."""
    found: dict[str, list[str]] = {}
    for row in disputed:
        if row.name in decisions:
            found.setdefault(decisions[row.name].why, []).append(row.name)
    return found


def code(text: str) -> str:
    """The text as code in a Markdown table."""
    return f"`{text.replace('|', chr(92) + '|').replace('`', chr(39)).replace(chr(10), ' ')}`"


if __name__ == "__main__":
    start(main)
