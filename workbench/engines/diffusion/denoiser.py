"""Continuous batching of a masked-diffusion model: rows join and leave at any step.

A step runs the model once over the rows that need their whole canvas, and once over those with the
rest of it in a cache. Then each row commits tokens by its settings. A row's answer does not depend
on the other rows of the batch in float32. In bfloat16, rounding depends on the batch, and a near
tie may change.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from workbench import values
from workbench.engines.device import collect, memory_ran_out
from workbench.engines.diffusion.denoising import Proposal
from workbench.engines.diffusion.network import KVCache, KVCacheView, Network
from workbench.engines.diffusion.row import Row
from workbench.errors import EngineError, log
from workbench.lazy import torch
from workbench.progress import check


@dataclass(frozen=True, slots=True)
class Counts:
    """What a denoiser has done so far.

    Attributes:
        forwards: runs of the model.
        rows: rows of these runs, summed; guidance counts twice.
        tokens: positions computed, summed; `padding` of them only make rows equally long.
        committed: tokens decided.
        out_of_memory: how often the slots were halved.
    """

    forwards: int = 0
    rows: int = 0
    tokens: int = 0
    padding: int = 0
    committed: int = 0
    out_of_memory: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, x.name) + getattr(other, x.name) for x in fields(self)))


class Denoiser:
    """Continuous batching of rows; for use by one thread at a time.

    Args:
        slots: maximum rows in a batch; a row with guidance counts twice. Halved if memory runs out.
        lock: held while the model runs, by all its users.

    Raises:
        InputError: `slots` is not a whole number from 1.
    """

    def __init__(self, network: Network, slots: int, lock: threading.Lock | None = None) -> None:
        self.slots = values.whole("batch_size", slots, 1)
        self.counts = Counts()
        self._network = network
        self._lock = lock or threading.Lock()
        self._queue: deque[Row] = deque()
        self._live: dict[Row, list[int]] = {}  # row: its slots
        self._cache = KVCache(max(2, slots))  # at least 2: room for a row with guidance

    @property
    def live(self) -> int:
        """Rows being denoised."""
        return len(self._live)

    @property
    def waiting(self) -> int:
        """Number of rows without a slot yet."""
        return len(self._queue)

    def add(self, row: Row) -> None:
        """Queue a row."""
        self._queue.append(row)

    def remove(self, row: Row) -> None:
        """Remove a row, wherever it is."""
        self._live.pop(row, None)
        if row in self._queue:
            self._queue.remove(row)

    def step(self) -> list[Row]:
        """Denoise each live row once; returns the rows whose block has ended, done ones included.

        Raises:
            EngineError: the model has failed.
        """
        check()
        while self._queue:
            taken = {slot for slots in self._live.values() for slot in slots}
            need = self._queue[0].slots
            if self._live and len(taken) + need > self.slots:
                break
            free = [slot for slot in range(self._cache.slots) if slot not in taken]
            self._live[self._queue.popleft()] = free[:need]
        if not self._live:
            return []
        reason = ""
        try:
            proposals = self._proposals()
        except (RuntimeError, MemoryError) as error:  # torch's memory error is the former
            reason = " ".join(str(error).split()) or type(error).__name__
            if not memory_ran_out(error):
                raise EngineError(f"the model failed mid-run: {reason:.400}") from error
        if reason:  # outside `except`, which would keep the tensors alive
            return self._halve(reason)
        committed = sum(row.commit(places, proposal) for row, places, proposal in proposals)
        self.counts += Counts(committed=committed)
        ended = [row for row in self._live if row.ended]
        for row in ended:
            if row.done:
                del self._live[row]
        return ended

    def _proposals(self) -> list[tuple[Row, list[int], Proposal]]:
        """Each live row's open positions, and the model's proposal for them."""
        made = []
        with self._lock, torch.inference_mode():
            for whole in (True, False):
                rows = {row: slots for row, slots in self._live.items() if row.fresh == whole}
                if rows:
                    opens = [row.masked() for row in rows]
                    found, counts = forward(self._network, rows, self._cache, opens, whole=whole)
                    self.counts += counts
                    each = zip(rows, opens, found, strict=True)
                    made += [(row, places, row.propose(logits)) for row, places, logits in each]
        return made

    def _halve(self, reason: str) -> list[Row]:
        """Continue with half the rows; the others wait, and no token is lost."""
        rows = [*self._live]
        self._live.clear()
        held = sum(row.slots for row in rows)
        if not (alone := len(rows) == 1 and self.slots <= held):
            self.counts += Counts(out_of_memory=1)
            self.slots = max(1, held // 2) if len(rows) > 1 else held
            log.warning("out of memory with %d rows in a batch, now %d", len(rows), self.slots)
        self._cache = KVCache(max(2, self.slots))
        collect(self._network.device)
        if alone:
            rows[0].fail(f"out of memory with this prompt alone: {reason:.200}")
            return rows
        for row in reversed(rows):
            row.rewind()
            self._queue.appendleft(row)
        return []


@dataclass(frozen=True, slots=True)
class _Part:
    """A row of the batch: the tokens from `start` of a canvas of `length`."""

    ids: Any
    start: int
    length: int
    open: list[int]  # positions whose logits are needed


def forward(
    network: Network,
    rows: Mapping[Row, Sequence[int]],
    cache: KVCache,
    opens: Sequence[list[int]],
    *,
    whole: bool,
) -> tuple[list[Any], Counts]:
    """Run the model over some rows.

    Args:
        rows: each with its slots, one, or two with guidance.
        opens: for each row, the canvas positions whose logits are needed.
        whole: run over whole canvases, not only over what the cache lacks.

    Returns:
        For each row the logits, float32 [its open positions, vocabulary], with guidance applied;
        and the counts of this run.
    """
    parts = [
        part
        for row, places in zip(rows, opens, strict=True)
        for part in _parts(network, row, places, whole)
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
        places[index, size:] = part.length  # a slot for padding, never read
    lengths = torch.tensor([part.length for part in parts])
    valid = (torch.arange(longest) < lengths[:, None]).to(device)
    view, places = None, places.to(device)
    if any(row.denoising.cache != "none" for row in rows):
        cache.reserve(longest)
        slots = torch.tensor([slot for own in rows.values() for slot in own], device=device)
        view = KVCacheView(cache, slots, None if whole else places, longest)
    hidden = network.hidden(ids.to(device), valid, places, view)
    at = [(index, place - part.start) for index, part in enumerate(parts) for place in part.open]
    row_at, place_at = torch.tensor(at, device=device).T
    logits = network.logits(hidden[row_at, place_at])
    tokens = len(parts) * width
    padding = tokens - sum(len(part.ids) for part in parts)
    guided = _guided(rows, logits.split([len(part.open) for part in parts]))
    return guided, Counts(forwards=1, rows=len(parts), tokens=tokens, padding=padding)


def _parts(network: Network, row: Row, places: list[int], whole: bool) -> list[_Part]:
    start, end = row.span
    if whole:
        start = 0
    if whole or row.denoising.cache == "prefix":
        end = len(row.ids)
    canvases = [row.ids]
    if row.slots == 2:  # the canvas without its prompt
        bare = row.ids.clone()
        bare[: len(row.prompt)] = network.mask
        canvases.append(bare)
    return [_Part(canvas[start:end], start, len(canvas), places) for canvas in canvases]


def _guided(rows: Mapping[Row, Sequence[int]], logits: Sequence[Any]) -> list[Any]:
    """Each row's logits; with guidance, from those with and without the prompt."""
    guided, rest = [], iter(logits)
    for row in rows:
        own = next(rest)
        if row.slots == 2:
            bare = next(rest)
            own = bare + (row.denoising.cfg_scale + 1) * (own - bare)
        guided.append(own)
    return guided
