"""Rows of a source that cannot be used: counted by reason, the first three shown, and a limit on their share.

A row is *left out* when a rule of its card says so (a proof has no answer to check), and *bad* when it is broken (a
torn line, a column it lacks, an empty text). What is left out is no fault of the data; too many bad rows are, and stop
the run with a sentence.
"""

import json
import logging
from collections import Counter

from pipeline.errors import DataError

log = logging.getLogger(__name__)

NUM_SHOWN = 3
MAX_SHOWN_CHARS = 160
EARLY = 1000
"""Bad rows after which the share is looked at before the source is at its end."""


class BadRow(Exception):
    """This row of a source cannot be used. Rows are counted by `reason`; `hint` is the way out, if there is one."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class Tally:
    """What became of the rows of one source, read for one split and config."""

    def __init__(self, where: str, max_bad_share: float, hint: str) -> None:
        self.where, self.hint = where, hint
        self.num_found = self.num_kept = 0
        self.left_out: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self.shown: list[str] = []
        """The first bad rows in words, with their number in the source (from 1)."""
        self._max_bad_share = max_bad_share
        self._hints: dict[str, None] = {}

    @property
    def bad_share(self) -> float:
        """Bad rows of all rows found, in [0, 1]."""
        return self.bad.total() / self.num_found if self.num_found else 0.0

    def count_bad(self, error: BadRow, raw: object) -> None:
        """Counts one row that cannot be used. Raises DataError once a thousand are too many."""
        self.bad[error.reason] += 1
        if len(self.shown) < NUM_SHOWN:
            self.shown.append(f"row {self.num_found}: {error.reason}: {_short(raw)}")
        if error.hint:
            self._hints[error.hint] = None
        if self.bad.total() % EARLY == 0:
            self._check_share()

    def finish(self) -> None:
        """Says what was bad. Raises DataError if that is too much, or if nothing was found or is left."""
        if not self.num_found:
            raise DataError(f"{self.where}: the data set is empty", f"look at its source, {self.hint}")
        self._check_share()
        if not self.num_kept:
            told = _told(self.left_out + self.bad)
            raise DataError(f"{self.where}: none of its {self.num_found} rows is left: {told}", f"see {self.hint}")
        if self.bad:
            bad, found = self.bad.total(), self.num_found
            first = "; ".join(self.shown)
            log.warning("%s: %d of %d rows are bad (%s). %s", self.where, bad, found, _told(self.bad), first)

    def _check_share(self) -> None:
        if self.bad_share > self._max_bad_share:
            bad, found = self.bad.total(), self.num_found
            raise DataError(
                f"{self.where}: {bad} of the {found} rows read are bad ({_told(self.bad)}), and the card allows "
                f"{self._max_bad_share:.0%} (`max_bad_share`). {'; '.join(self.shown)}",
                " ".join(self._hints) or f"look at its source, {self.hint}",
            )


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} {number}" for reason, number in counts.most_common(8)) or "no reason given"


def _short(raw: object) -> str:
    text = json.dumps(raw, ensure_ascii=False, default=str)  # a text too: it may hold what moves a terminal's cursor
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
