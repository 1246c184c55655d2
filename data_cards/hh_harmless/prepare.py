"""HH harmless: takes a dialogue and its two last replies apart.

Reads rows `{chosen, rejected}`, two transcripts that differ in the assistant's last reply only; makes
preferences. Without a config only dialogues of one question are kept, because every prompt in this pipeline is
one; the config `dialogues` keeps the others too, with the transcript up to the last question as the prompt.
"""

import re
from collections.abc import Mapping

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
RAN_ON = re.compile(r"\b(?:Human|Assistant):")


def row(raw: Mapping[str, str], config: str | None) -> dict[str, str] | None:
    """The preference in a row; None where there is none to be had."""
    dialogue, chosen = _last_reply(raw["chosen"])
    other, rejected = _last_reply(raw["rejected"])
    is_clean = dialogue and dialogue == other and all(text and not RAN_ON.search(text) for text in (chosen, rejected))
    is_wanted = config == "dialogues" or dialogue.count(HUMAN) == 1
    if not (is_clean and is_wanted):
        return None
    return {"prompt": dialogue.removeprefix(HUMAN).strip(), "chosen": chosen, "rejected": rejected}


def _last_reply(transcript: str) -> tuple[str, str]:
    dialogue, _, reply = transcript.rpartition(ASSISTANT)
    return dialogue, reply.strip()
