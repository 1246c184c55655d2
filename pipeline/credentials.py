"""Access tokens and passwords, told by their form or because a variable of the environment holds them.

`holds(text)` keeps them out of settings, which are copied into manifests and reports (`settings.py`, `card_block.py`,
`written.py`); `hidden(text)` keeps them out of the sentences of errors, which land in logs and in Prefect's database
(`errors.py`). What a library prints by itself is not looked through.
"""

import os
import re

_FORM = r"\b(?:hf_|api_org_|sk-|gh[opsu]_|github_pat_|glpat-|xox[abp]-|AKIA)[A-Za-z0-9_-]{16,}|(?<=://)[^/\s:@\"]+:[^/\s@\"]+(?=@)"
_NAME = re.compile(r"(?:TOKEN|KEY|PASSWORD|PASSWD|SECRET)$", re.IGNORECASE)
LEAST_CHARS = 8
"""Of a variable's value: a shorter one could be any word."""


def holds(text: str) -> bool:
    """Whether a token or a password stands in the text."""
    return _pattern().search(text) is not None


def hidden(text: str) -> str:
    """The text with three dots for every token and password."""
    return _pattern().sub("…", text)


def _pattern() -> re.Pattern[str]:
    known = [value for name, value in os.environ.items() if _NAME.search(name) and len(value.strip()) >= LEAST_CHARS]
    return re.compile("|".join([_FORM, *(rf"(?<!\w){re.escape(value.strip())}(?!\w)" for value in known)]))
