"""Keys and values kept between the steps of rows: where the prefix and dual caches live.

Each row has a lane of its own, filled by position, so that rows of different lengths and at
different blocks share a forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GRAIN = 64


@dataclass(slots=True)
class Lanes:
    """Keys and values [lanes, heads, width, head size] of each layer, made when first needed."""

    count: int
    width: int = 0
    kept: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def reserve(self, width: int) -> None:
        """Make room for canvases of `width` tokens and one place for what nobody reads."""
        if width < self.width:
            return
        self.width = -(-(width + 1) // GRAIN) * GRAIN
        for layer, pair in self.kept.items():
            old = pair[0].shape[2]
            grown = tuple(x.new_zeros(*x.shape[:2], self.width, x.shape[3]) for x in pair)
            for new, x in zip(grown, pair, strict=True):
                new[:, :, :old] = x
            self.kept[layer] = (grown[0], grown[1])

    def of(self, layer: int, like: Any) -> tuple[Any, Any]:
        """A layer's keys and values."""
        if layer not in self.kept:
            heads, size = like.shape[1], like.shape[3]
            shape = (self.count, heads, self.width, size)
            self.kept[layer] = (like.new_zeros(shape), like.new_zeros(shape))
        return self.kept[layer]


@dataclass(frozen=True, slots=True)
class View:
    """What one forward writes to and reads from lanes; stands where transformers has its cache.

    Attributes:
        rows: the lane of each row.
        positions: [rows, length], where the forward's keys and values belong; None is the whole
            canvas from its beginning, which needs nothing of what was kept.
        width: keys that a row may see.
    """

    lanes: Lanes
    rows: Any
    positions: Any
    width: int

    def update(self, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Keep these keys and values; returns all that the rows may see."""
        kept = self.lanes.of(layer, keys)
        if self.positions is None:
            for store, new in zip(kept, (keys, values), strict=True):
                store[self.rows, :, : new.shape[2]] = new
                store[self.rows, :, new.shape[2] :] = 0  # of whoever had the lane before
            return keys, values
        for store, new in zip(kept, (keys, values), strict=True):
            store[self.rows[:, None], :, self.positions] = new.transpose(1, 2)
        return kept[0][self.rows, :, : self.width], kept[1][self.rows, :, : self.width]

    def get_seq_length(self, *_: Any) -> int:
        """Positions are always given."""
        return 0
