"""Rows of tokens laid end to end without padding between them, where the responses to a prompt share one copy of it.

TRL gives a batch as rectangles: prompts padded on the left, completions on the right, each prompt as often as it has
completions. Here they become one line of tokens: each different prompt once, then its completions. A completion
attends to its prompt and to itself, and its first token is predicted by the prompt's last. The same line carries the
demos of SFT, which have no prompt in common.

Shapes: B rows, P prompt tokens, C completion tokens; T tokens of the line, N tokens that are predicted.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stages.engines.long_attention import padded_length
from stages.engines.token_budget import same_prompts


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of the line that attend to one another, and to `prefix` before them."""

    start: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0


@dataclass
class FlatRows:
    """See the module docstring."""

    ids: Tensor
    """(T,)"""
    pieces: list[Piece]
    reads: Tensor
    """(N,) place in the line whose hidden state predicts a token."""
    targets: Tensor
    """(N,) the tokens predicted."""
    rows: Tensor
    """(N,) where the result belongs: row …"""
    columns: Tensor
    """… and column of the rectangle."""
    padding: int = 0
    """Tokens at the end that nothing reads."""
    _device_tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def positions(self) -> Tensor:
        """(T,) place of each token in its own text; padding stays at the last one's."""
        places = torch.cat([torch.arange(p.prefix_length, p.prefix_length + p.length) for p in self.pieces])
        return places.clamp(max=len(places) - 1 - self.padding)

    @property
    def longest(self) -> tuple[int, int]:
        """Most queries and most keys of a piece."""
        return max(p.length for p in self.pieces), max(p.prefix_length + p.length for p in self.pieces)

    @property
    def is_one_row(self) -> bool:
        """Whether each token attends to all before it: one text, or a prompt with one completion."""
        first, *rest = self.pieces
        return not rest or (len(rest) == 1 and rest[0].prefix_length == first.length)

    def offsets(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where each piece's queries and keys begin, with the end: (pieces + 1,) int32 each."""
        return self._once("queries", [p.length for p in self.pieces], device), self._once(
            "keys", [p.prefix_length + p.length for p in self.pieces], device
        )

    def key_places(self, device: torch.device) -> Tensor | None:
        """Places in the line of the keys of each piece, end to end; None where that is the line itself."""
        if not any(p.prefix_length for p in self.pieces):
            return None
        if "places" not in self._device_tensors:
            parts = [
                torch.arange(start, start + length)
                for p in self.pieces
                for start, length in ((p.prefix_start, p.prefix_length), (p.start, p.length))
            ]
            self._device_tensors["places"] = torch.cat(parts).to(device)
        return self._device_tensors["places"]

    def _once(self, name: str, lengths: list[int], device: torch.device) -> Tensor:
        if name not in self._device_tensors:
            ends = torch.tensor([0, *lengths]).cumsum(0)
            self._device_tensors[name] = ends.to(device, torch.int32)
        return self._device_tensors[name]


def flat_completions(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor, share: bool = True
) -> FlatRows:
    """The line of a batch of TRL's GRPO tensors; `share` False gives each completion a prompt of its own."""
    prompt_ids, prompt_mask = prompt_ids.cpu(), prompt_mask.cpu()
    completion_ids, lengths = completion_ids.cpu(), completion_mask.sum(1).tolist()
    which = same_prompts(prompt_ids, prompt_mask)[1].tolist() if share else list(range(len(prompt_ids)))
    line = _Line()
    for name in sorted(set(which)):
        rows = [i for i, other in enumerate(which) if other == name and lengths[i]]
        if not rows:
            continue
        prompt = line.add(prompt_ids[rows[0]][prompt_mask[rows[0]].bool()])
        for row in rows:
            # The last token predicts nothing.
            own = line.add(completion_ids[row, : lengths[row] - 1], prompt)
            reads = [prompt.start + prompt.length - 1, *range(own.start, own.start + own.length)]
            line.predict(torch.tensor(reads), completion_ids[row, : lengths[row]], row, 0)
    return line.rows()


def flat_demos(ids: Tensor, labels: Tensor, lengths: list[int]) -> FlatRows:
    """The line of SFT's demos, padded on the right; predicts the tokens whose label is not -100.

    A prediction's column is that of the token before, as in labels that are shifted by one.
    """
    ids, labels = ids.cpu(), labels.cpu()
    line = _Line()
    for row, length in enumerate(lengths):
        piece = line.add(ids[row, :length])
        learned = (labels[row, 1:length] != -100).nonzero().squeeze(1)
        line.predict(piece.start + learned, labels[row, 1 + learned], row, learned)
    return line.rows()


class _Line:
    """A line in the making."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.pieces: list[Piece] = []
        self.length = 0
        self.predictions: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, ids: Tensor, prefix: Piece | None = None) -> Piece:
        before = (prefix.start, prefix.length) if prefix else (0, 0)
        piece = Piece(self.length, len(ids), *before)
        if len(ids):
            self.ids.append(ids)
            self.pieces.append(piece)
            self.length += len(ids)
        return piece

    def predict(self, reads: Tensor, targets: Tensor, row: int, columns: Tensor | int) -> None:
        places = columns if isinstance(columns, Tensor) else columns + torch.arange(len(reads))
        self.predictions.append((reads, targets, torch.full_like(reads, row), places))

    def rows(self) -> FlatRows:
        reads, targets, rows, columns = (torch.cat(parts) for parts in zip(*self.predictions, strict=True))
        line = FlatRows(torch.cat(self.ids), self.pieces, reads, targets, rows, columns)
        return _padded(line) if line.is_one_row else line


def _padded(line: FlatRows) -> FlatRows:
    """A row alone with what attention wants behind it; nothing reads that."""
    more = padded_length(len(line.ids)) - len(line.ids)
    last = line.pieces[-1]
    pieces = [*line.pieces[:-1], replace(last, length=last.length + more)]
    return replace(line, ids=torch.cat([line.ids, line.ids.new_zeros(more)]), pieces=pieces, padding=more)
