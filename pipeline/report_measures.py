"""Measured numbers for the report: a value with its interval, the change between two of them, and both as text.

Reads what an evaluation wrote (`{"value", "ci95", "n"}`, or a bare number, and the value for every problem). A change
has an interval of its own, and only a change whose interval does not hold 0 is called one.

Two models measured on the same problems mostly rise and fall together on them, so their change is that of each problem
both were asked, with a bootstrap over these problems (`paired`). Two imagined problems more, one that got better and
one that got worse, keep it honest where few problems differ: without them, four problems better of five hundred and
none worse would be a change, and equal values a certainty. They are what Bonett and Price (Journal of Educational and
Behavioral Statistics 37, 2012) add to a table of matched pairs.

Where the problems are others or unknown, the interval is put together from the two intervals (MOVER, Zou and Donner,
Statistics in Medicine 27, 2008): with values a, b and bounds [la, ua], [lb, ub] the lower bound of b - a is
b - a - sqrt((b - lb)² + (ua - a)²), the upper one likewise. That asks for no raw samples, keeps the lopsided intervals
of shares near 0 and 1, and treats the two as independent, so it is too wide rather than too narrow.

Command: `make report RUN=NAME`
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

NUM_RESAMPLES = 2000
ENOUGH_SHARED = 0.5
"""Two measures are paired where they share at least so much of the problems of each."""


@dataclass(frozen=True)
class Metric:
    """How a measured number is shown; `better` is +1, -1, or 0 where neither direction is good in itself."""

    label: str
    share: bool = True
    better: int = 1


METRICS = {
    "pass_at_1": Metric("pass@1: a single answer is right"),
    "maj_at_k": Metric("maj@k: the commonest of k answers is right"),
    "pass_at_k": Metric("pass@k: one of k answers is right"),
    "language_consistency": Metric("reasoning in the language of the question"),
    "format_rate": Metric("well-formed responses"),
    "instruction_following": Metric("instructions followed"),
    "ifeval_prompt_strict": Metric("IFEval by prompt, strict"),
    "ifeval_prompt_loose": Metric("IFEval by prompt, loose"),
    "ifeval_instruction_strict": Metric("IFEval by instruction, strict"),
    "ifeval_instruction_loose": Metric("IFEval by instruction, loose"),
    "helpfulness": Metric("helpfulness"),
    "harmlessness": Metric("harmful requests refused"),
    "over_refusal": Metric("harmless requests refused", better=-1),
    "mean_response_tokens": Metric("mean response, tokens", share=False, better=0),
    "truncated_rate": Metric("cut at the length limit", better=-1),
}


def finite(raw: Any) -> float | None:
    """`raw` as a float when it is a finite number, otherwise None."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    try:
        return float(raw) if math.isfinite(raw) else None
    except OverflowError:  # an integer beyond any float
        return None


@dataclass(frozen=True)
class Measure:
    """One measured number: its value, 95 % interval and the number of problems; None where there is none."""

    value: float | None
    ci95: tuple[float, float] | None = None
    n: int | None = None
    by_problem: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)
    """Key of each problem -> the value for it; empty where that is not known."""

    @classmethod
    def read(cls, raw: Any, by_problem: Mapping[str, float] | None = None) -> "Measure":
        """From `{"value", "ci95", "n"}` or a bare number; NaN, infinities and text count as not measured."""
        record = raw if isinstance(raw, dict) else {"value": raw}
        bounds = record.get("ci95")
        ends = [finite(bound) for bound in bounds] if isinstance(bounds, list) and len(bounds) == 2 else [None]
        n = finite(record.get("n"))
        low_high = None if None in ends else (ends[0], ends[1])
        value, num = finite(record.get("value")), None if n is None else int(n)
        return cls(value, low_high, num, by_problem or {})  # type: ignore[arg-type]

    def change_to(self, other: "Measure") -> "Change | None":
        """How far `other` lies above this; None unless both have a value and an interval.

        Over the problems that both have where they share enough of them, otherwise from the two intervals.
        """
        if self.value is None or other.value is None or self.ci95 is None or other.ci95 is None:
            return None
        shared = [key for key in self.by_problem if key in other.by_problem]
        if shared and len(shared) >= ENOUGH_SHARED * max(len(self.by_problem), len(other.by_problem)):
            return paired(tuple(other.by_problem[key] - self.by_problem[key] for key in shared))
        value = other.value - self.value
        below = math.hypot(other.value - other.ci95[0], self.ci95[1] - self.value)
        above = math.hypot(other.ci95[1] - other.value, self.value - self.ci95[0])
        return Change(value, (value - below, value + above))


Measures = dict[str, Measure]


@dataclass(frozen=True)
class Change:
    """A difference of two measures with its 95 % interval."""

    value: float
    ci95: tuple[float, float]
    paired: bool = False
    """True where it was taken problem by problem."""

    @property
    def sign(self) -> int:
        """+1 or -1 where the interval lies on one side of 0, otherwise 0: no change is shown."""
        return (self.ci95[0] > 0) - (self.ci95[1] < 0)


@lru_cache(maxsize=1024)  # tables, stars and the headline ask for the same change
def paired(differences: tuple[float, ...]) -> Change:
    """The mean of the problems' differences with its bootstrap interval (percentiles of 2000 resampled means).

    Two imagined problems are resampled along, one better by as much as any problem differs (by 1 where none does) and
    one as much worse; the value is that of the true ones alone.
    """
    import numpy as np  # here, so that `make plan` need not wait for it

    data = np.asarray(differences, dtype=np.float64)
    most = float(np.abs(data).max()) or 1.0
    padded = np.concatenate([data, [most, -most]])
    drawn = np.random.default_rng(0).integers(0, len(padded), size=(NUM_RESAMPLES, len(padded)), dtype=np.int32)
    low, high = np.percentile(padded[drawn].mean(axis=1), [2.5, 97.5])
    value = float(data.mean())
    return Change(value, (min(value, float(low)), max(value, float(high))), paired=True)


def as_text(metric: str, value: float | None) -> str:
    """`27.4 %`, `46`; a dash for None."""
    if value is None:
        return "–"
    if METRICS[metric].share and 0 <= value <= 1:  # a reward model's score may lie outside and is shown as it is
        return f"{100 * value:.1f} %"
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}"


def interval(metric: str, measure: Measure) -> str:
    """`[23.6, 31.3]`, or nothing where no interval is known."""
    if measure.ci95 is None:
        return ""
    bounds = (as_text(metric, bound).removesuffix(" %") for bound in measure.ci95)
    return f"[{', '.join(bounds)}]"


def with_interval(metric: str, measure: Measure) -> str:
    """`27.4 % [23.6, 31.3]`."""
    return f"{as_text(metric, measure.value)} {interval(metric, measure)}".rstrip()


def signed(metric: str, value: float) -> str:
    """`+12.3` (percentage points of a share), `−4` (tokens)."""
    text = f"{100 * value:+.1f}" if METRICS[metric].share else f"{value:+.0f}" if abs(value) >= 10 else f"{value:+.1f}"
    return text.replace("-", "−")


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def gibibytes(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} GiB"
