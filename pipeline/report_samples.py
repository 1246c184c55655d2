"""What a model said, for the report: the same problems before and after a stage, as text that stays text.

Reads `completions.jsonl` of the evaluations before and after every stage. Control characters are made visible and
whatever looks like a tag is marked; nothing a model wrote can become a part of the page.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.report_run import Run, StageRecord, read_rows

MAX_SHOWN_CHARACTERS = 6000  # of one completion
MARKS = re.compile(r"(</?[A-Za-z_]{1,20}>|<\|[^|<>]{1,40}\|>)")  # whatever looks like a tag or a special token
# Control characters become their pictures (U+2400 ...) or, as all that is not seen or turns the direction of writing,
# their number; lone surrogates (which UTF-8 cannot hold) the sign for a character that could not be read.
UNSEEN = (
    *(*range(0x7F, 0xA0), 0xAD, 0x61C, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)),
    *(0xFEFF, *range(0xE0000, 0xE0080)),
)
VISIBLE: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    **{code: f"[U+{code:04X}]" for code in UNSEEN},
    **dict.fromkeys(range(0xD800, 0xE000), "�"),
}

Pair = tuple[dict[str, Any] | None, dict[str, Any]]
CHANGES = ("wrong → right", "right → right", "wrong → wrong", "right → wrong", "right", "wrong")


def samples(run: Run) -> list[dict[str, Any]]:
    """For every stage whose model was measured: problems of every domain with the completions before and after it.

    Returns `{"stage", "before", "after", "counts", "problems"}`; `counts` is how many problems went from
    wrong to right and so on, by the first completion of each, so that picked problems cannot flatter.
    """
    found = []
    for stage in run.stages:
        after = run.evaluation_of(f"stage:{stage.name}")
        before = run.evaluation_of(stage.model)
        new, old = _first_completions(after), _first_completions(before)
        if not after or not new:
            continue
        both = {key: (old.get(key), row) for key, row in new.items() if key in old or not old}
        found.append(
            {
                "stage": stage.name,
                "before": before.measured if before and old else None,
                "after": after.measured,
                "counts": _count_changes(both.values()),
                "problems": [_sample(*both[key]) for key in _pick(both)],
            }
        )
    return found


def _first_completions(evaluation: StageRecord | None) -> dict[str, dict[str, Any]]:
    """Problem id -> the first of its completions, in the order of the file."""
    rows = read_rows(evaluation.folder / "completions.jsonl") if evaluation and evaluation.folder else []
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(str(row.get("id")), row)
    return first


def _change_of(pair: Pair) -> str:
    return " → ".join("right" if row.get("right") is True else "wrong" for row in pair if row is not None)


def _count_changes(pairs: Iterable[Pair]) -> list[tuple[str, int]]:
    changes = [_change_of(pair) for pair in pairs]
    return [(change, changes.count(change)) for change in CHANGES if change in changes]


def _pick(pairs: Mapping[str, Pair], num: int = 3) -> list[str]:
    """The first problem of each change, then the first of each domain not shown yet, then others up to `num`.

    Always the same for the same files.
    """
    first: dict[str, str] = {}
    for key, pair in pairs.items():
        first.setdefault(_change_of(pair), key)
    picked = [first[change] for change in CHANGES if change in first]
    seen = {_domain(pairs[key]) for key in picked}
    for key, pair in pairs.items():
        if _domain(pair) not in seen:
            seen.add(_domain(pair))
            picked.append(key)
    others = [key for key in pairs if key not in picked]
    return picked + others[: max(0, num - len(picked))]


def _domain(pair: Pair) -> str:
    return str(pair[1].get("domain", ""))


def _sample(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    shown = {name: visible(str(new.get(name, ""))) for name in ("id", "prompt", "answer", "domain", "language")}
    return {**shown, "before": _shown(old) if old else None, "after": _shown(new)}


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    text = str(row.get("completion", ""))
    cut = len(text) - MAX_SHOWN_CHARACTERS
    return {
        "pieces": marked(visible(text[:MAX_SHOWN_CHARACTERS])),
        "cut": cut if cut > 0 else 0,
        "verdict": str(row.get("verdict", "")) or ("right" if row.get("right") is True else "wrong"),
        "right": row.get("right") is True,
        "tokens": row.get("tokens"),
        "truncated": row.get("truncated") is True,
    }


def visible(text: str) -> str:
    """`text` with control characters made visible and nothing that UTF-8 cannot hold."""
    return text.translate(VISIBLE)


def marked(text: str) -> list[tuple[str, bool]]:
    """`text` in pieces, (piece, looks like a tag); joined they are `text` again."""
    return [(piece, number % 2 == 1) for number, piece in enumerate(MARKS.split(text)) if piece]
