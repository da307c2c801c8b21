"""One run of the model over rows: padded and masked, logits only where a token is open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.engines.diffusion.lanes import Lanes, View
from workbench.engines.diffusion.network import Network
from workbench.engines.diffusion.row import Row


@dataclass(frozen=True, slots=True)
class Forward:
    """What came out.

    Attributes:
        logits: of each row, float32 [its open positions, vocabulary], guidance applied.
        rows: rows run, those of guidance included.
        tokens: positions computed.
        padding: of these, padding.
    """

    logits: list[Any]
    rows: int
    tokens: int
    padding: int


@dataclass(frozen=True, slots=True)
class _Part:
    """A row of the batch: tokens from `start` on of a canvas of `length`."""

    ids: Any
    start: int
    length: int
    open: list[int]  # positions whose logits are wanted


def forward(
    network: Network,
    rows: Mapping[Row, Sequence[int]],
    lanes: Lanes,
    opens: Sequence[list[int]],
    *,
    whole: bool,
) -> Forward:
    """Run the model over some rows.

    Args:
        rows: with the lanes of each, the first its own, a second one of guidance.
        opens: of each row, the positions of the canvas whose logits are wanted.
        whole: over whole canvases, and not only what a cache has not.
    """
    import torch

    parts = [
        part
        for row, mine in zip(rows, opens, strict=True)
        for part in _parts(network, row, mine, whole)
    ]
    width = max(len(part.ids) for part in parts)
    longest = max(part.length for part in parts)
    device = network.device
    ids = torch.full((len(parts), width), network.mask)
    places = torch.empty((len(parts), width), dtype=torch.long)
    for index, part in enumerate(parts):
        size = len(part.ids)
        ids[index, :size] = part.ids
        places[index, :size] = torch.arange(part.start, part.start + size)
        places[index, size:] = part.length  # where nobody looks
    lengths = torch.tensor([part.length for part in parts])
    valid = (torch.arange(longest) < lengths[:, None]).to(device)
    view, places = None, places.to(device)
    if any(row.denoising.cache != "none" for row in rows):
        lanes.reserve(longest)
        mine = torch.tensor([lane for of in rows.values() for lane in of], device=device)
        view = View(lanes, mine, None if whole else places, longest)
    hidden = network.hidden(ids.to(device), valid, places, view)
    at = [(index, place - part.start) for index, part in enumerate(parts) for place in part.open]
    row_at, place_at = torch.tensor(at, device=device).T
    logits = network.logits(hidden[row_at, place_at])
    computed = sum(len(part.ids) for part in parts)
    return Forward(
        _guided(rows, logits.split([len(part.open) for part in parts])),
        len(parts),
        len(parts) * width,
        len(parts) * width - computed,
    )


def _parts(network: Network, row: Row, mine: list[int], whole: bool) -> list[_Part]:
    start, end = row.span
    if whole:
        start = 0
    if whole or row.denoising.cache == "prefix":
        end = len(row.ids)
    canvases = [row.ids]
    if row.lanes == 2:  # the canvas without what was given
        bare = row.ids.clone()
        bare[: len(row.prompt)] = network.mask
        canvases.append(bare)
    return [_Part(canvas[start:end], start, len(canvas), mine) for canvas in canvases]


def _guided(rows: Mapping[Row, Sequence[int]], logits: Sequence[Any]) -> list[Any]:
    """Each row's logits, from those with and without its prompt where it asks for guidance."""
    found, rest = [], iter(logits)
    for row in rows:
        given = next(rest)
        if row.lanes == 2:
            bare = next(rest)
            given = bare + (row.denoising.cfg_scale + 1) * (given - bare)
        found.append(given)
    return found
