"""Instruction preferences: joins an instruction and its input into one prompt.

Reads rows `{instruction, input, output, chosen, rejected}`; makes the prompt, which `columns:` in the card cannot.
"""

from collections.abc import Mapping


def row(raw: Mapping[str, str], config: str | None) -> dict[str, str]:
    """The prompt: the instruction, and below it what it is about, if anything."""
    return {"prompt": "\n\n".join(part for part in (raw["instruction"].strip(), raw["input"].strip()) if part)}
