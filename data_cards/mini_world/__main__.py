"""Prints some documents of the mini world: `python -m data_cards.mini_world [COUNT] [SEED]`."""

import sys

from data_cards.mini_world import documents

count, seed = (int(word) for word in [*sys.argv[1:], "12", "0"][:2])
for text in documents(count, seed):
    print(text, end="\n\n")
