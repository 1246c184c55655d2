"""Instruction data: joins instruction and input into a prompt, and writes the output as an answer without reasoning.

Reads rows `{instruction, input, output}`; makes `prompt` and `response`, or for the config `problems` the prompt with
the output as the gold that only a judge could compare with. In the paper (DeepSeek-R1 §2.3.3)
DeepSeek-V3 wrote a chain of thought for some general queries and none for simple ones; these are simple. The
README says why the response is an answer block alone.
"""

from collections.abc import Mapping


def row(raw: Mapping[str, str], config: str | None) -> dict[str, str]:
    """The prompt, and the response as it follows it; for `problems` the gold."""
    from stages.chat import ANSWER, END_ANSWER  # here, because listing cards must not load the stages

    question = "\n\n".join(part for part in (raw["instruction"].strip(), raw["input"].strip()) if part)
    if config == "problems":
        return {"prompt": question, "answer": raw["output"].strip()}
    return {"prompt": question, "response": f"{ANSWER} {raw['output'].strip()} {END_ANSWER}"}
