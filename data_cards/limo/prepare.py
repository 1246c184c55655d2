r"""LIMO: the long solution as reasoning, its answer as answer.

Reads `{question, solution, answer}`; the solution is one long chain of thought without tags that ends in a `\boxed{}`.
Makes `prompt` and `response`, or for the config `problems` nothing beside the mapped columns.
"""

from collections.abc import Mapping

from data_cards.traces import demo


def row(raw: Mapping[str, str], config: str | None) -> dict[str, str]:
    """The demo: the whole solution is the reasoning, the gold answer the answer."""
    return {} if config == "problems" else demo(raw["question"], raw["solution"].strip(), raw["answer"].strip())
