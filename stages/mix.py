"""Which demos an SFT stage learns: how many of each source, in what order, and which are held out.

Reads the rows of each reference; says how many of each are taken (`amounts`), which ones (`in_order`) and
which prompts are kept back to measure the loss (`hold_out`). Not a stage itself; `SFT` is.

Paper: DeepSeek-R1 §2.3.3 and its table of the SFT data: 627 k reasoning demos and 178 k others, that is 77.9 to
22.1 %. How we differ: shares are exact at any size, because a mix is made as large as its scarcest source
allows and no demo is repeated to fill it.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence

from pipeline.card import Row, bucket, canonical_id


def in_order(rows: Iterable[Row], seed: int, most: int | None = None) -> list[Row]:
    """At most `most` rows, in an order that depends on the rows and the seed alone, not on how they lie in files.

    A smaller `most` gives the beginning of a larger one.
    """

    def place(row: Row) -> str:
        return hashlib.sha256(f"{seed}:{row['id']}:{row['response']}".encode()).hexdigest()

    return sorted(rows, key=place)[:most]


def amounts(sizes: Sequence[int], shares: Sequence[float] | None, limit: int | None) -> list[int]:
    """How many demos to take from sources that have `sizes` of them.

    With `shares` the mix is the largest one that has them and repeats nothing; without, it is
    everything. `limit` is the most in all; where it cuts, the shares stay.
    """
    weights = sizes if shares is None else shares
    shares = [weight / sum(weights) for weight in weights]
    # Rounding first: 0.3 * 10 is a little more than 3, and a demo must not be lost to that.
    largest = min(math.floor(round(size / share, 6)) for size, share in zip(sizes, shares, strict=True))
    total = largest if limit is None else min(largest, limit)
    exact = [round(share * total, 6) for share in shares]
    taken = [math.floor(number) for number in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: taken[i] - exact[i])
    for i in by_remainder[: total - sum(taken)]:
        taken[i] += 1
    return taken


def hold_out(prompts: Iterable[str], share: float) -> frozenset[str]:
    """The prompts kept back to measure the loss: `share` of the different ones, at least one, never all.

    A prompt with several demos is held out with all of them. Prompts are chosen by a hash of their text, so
    the same one is held out again in another mix of about the same size.
    """
    different = sorted(set(prompts), key=lambda prompt: (bucket(f"sft:{canonical_id(prompt)}"), prompt))
    number = min(max(1, round(share * len(different))), len(different) - 1) if share else 0
    return frozenset(different[: max(0, number)])
