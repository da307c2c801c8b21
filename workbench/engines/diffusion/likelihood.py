"""Likelihood of a text under a masked-diffusion model: the bound that it was trained on.

With k of the L target tokens masked, chosen at random, and k itself uniform on 1..L,
log p(target | prompt) ≥ E[L/k · Σ over masked tokens of log p(token | prompt, rest)]
(LLaDA, arXiv 2502.09992, equation 6). For one token, the bound is its exact log-probability. Up
to `EXACT` tokens, all masks are computed, which gives the bound itself; above, `SAMPLES` are drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Any

from workbench.engines.device import collect, memory_ran_out
from workbench.errors import EngineError
from workbench.lazy import np, torch
from workbench.progress import check
from workbench.store import digest

if TYPE_CHECKING:
    from workbench.engines.diffusion.network import Network

EXACT = 7
SAMPLES = 128


@dataclass(frozen=True, slots=True)
class Masking:
    """Which tokens of a target are masked, and the weight of the sum of their log-probabilities."""

    places: tuple[int, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class _Canvas:
    """A prompt and a target with masks, and the tokens to score.

    `wanted` are (label, position, token, weight).
    """

    ids: tuple[int, ...]
    wanted: list[tuple[int, int, int, float]]


def maskings(prompt: Sequence[int], target: Sequence[int]) -> Iterator[Masking]:
    """The masks whose weighted sums of log-probabilities add up to the bound, or estimate it.

    The draws depend on the prompt and the target alone, so that the result is repeatable. They
    are stratified over k, as in LLaDA's get_log_likelihood.py.
    """
    length = len(target)
    if length <= EXACT:
        for count in range(1, length + 1):
            weight = 1 / count / comb(length, count)  # (1 / L) (1 / C(L, k)) (L / k)
            yield from (Masking(places, weight) for places in combinations(range(length), count))
        return
    rng = np.random.default_rng(int.from_bytes(digest(list(prompt), list(target))[:8], "big"))
    counts = np.floor((rng.random() + np.arange(SAMPLES)) / SAMPLES * length).astype(int) + 1
    for count in counts.tolist():
        places = np.sort(rng.permutation(length)[:count])
        yield Masking(tuple(places.tolist()), length / count / SAMPLES)


def _canvases(
    prompt: Sequence[int], labels: Sequence[Sequence[int]], mask: int
) -> Iterator[_Canvas]:
    """All canvases for a prompt's labels; labels of one token share one."""
    made: dict[tuple[int, ...], _Canvas] = {}
    for label, target in enumerate(labels):
        for masking in maskings(prompt, target):
            ids = [*prompt, *target]
            for place in masking.places:
                ids[len(prompt) + place] = mask
            canvas = made.setdefault(tuple(ids), _Canvas(tuple(ids), []))
            canvas.wanted.extend(
                (label, len(prompt) + place, target[place], masking.weight)
                for place in masking.places
            )
    yield from made.values()


def _logprobs_at(network: Network, batch: Sequence[_Canvas]) -> list[list[float]]:
    """The log-probability of each wanted token of each canvas, in one forward."""
    device: Any = network.device
    width = max(len(canvas.ids) for canvas in batch)
    rows = [[*canvas.ids, *[network.mask] * (width - len(canvas.ids))] for canvas in batch]
    lengths = torch.tensor([len(canvas.ids) for canvas in batch])
    valid = (torch.arange(width) < lengths[:, None]).to(device)
    asked = [(row, at, id_) for row, c in enumerate(batch) for _, at, id_, _ in c.wanted]
    places = sorted({(row, at) for row, at, _ in asked})  # each is computed once
    where = {place: index for index, place in enumerate(places)}
    with torch.inference_mode():
        positions = torch.arange(width, device=device)[None]
        hidden = network.hidden(torch.tensor(rows, device=device), valid, positions)
        row_at, place_at = torch.tensor(places, device=device).T
        logprobs = network.logits(hidden[row_at, place_at]).double().log_softmax(-1)
        index = torch.tensor([where[row, at] for row, at, _ in asked], device=device)
        tokens = torch.tensor([id_ for _, _, id_ in asked], device=device)
        found = iter(logprobs[index, tokens].tolist())
    return [[next(found) for _ in canvas.wanted] for canvas in batch]


@dataclass(slots=True)
class _Sum:
    """A prompt's bounds so far, and the number of canvases left."""

    left: int
    bounds: list[float]


def bounds(
    network: Network,
    lock: AbstractContextManager[Any],
    prompts: Mapping[int, Sequence[int]],
    labels: Mapping[int, Sequence[Sequence[int]]],
    size: int,
) -> Iterator[tuple[int, list[float] | None]]:
    """(prompt's index, bound per label) as prompts finish; None if it did not fit into memory.

    Args:
        lock: held while the model runs.
        prompts: each prompt's tokens, by index.
        labels: the tokens of each prompt's labels, by index.
        size: canvases per forward; halved if memory runs out.

    Raises:
        EngineError: the model has failed.
    """
    sums: dict[int, _Sum] = {}
    queue: deque[tuple[int, _Canvas]] = deque()
    order = sorted(prompts, key=lambda index: -len(prompts[index]))  # similar lengths together
    for index in order:
        canvases = list(_canvases(prompts[index], labels[index], network.mask))
        sums[index] = _Sum(len(canvases), [0.0] * len(labels[index]))
        queue += [(index, canvas) for canvas in canvases]
        while len(queue) >= (1 if index == order[-1] else size) and queue:
            check()
            batch = [queue.popleft() for _ in range(min(size, len(queue)))]
            logprobs = _try_batch(network, lock, [canvas for _, canvas in batch])
            if logprobs is None and len(batch) > 1:
                size = len(batch) // 2
                queue.extendleft(reversed(batch))
            elif logprobs is None:
                alone = batch[0][0]
                queue = deque(job for job in queue if job[0] != alone)
                yield alone, None
            else:
                for (one, canvas), values in zip(batch, logprobs, strict=True):
                    total = sums[one]
                    total.left -= 1
                    for (label, _, _, weight), value in zip(canvas.wanted, values, strict=True):
                        total.bounds[label] += weight * value
                    if total.left == 0:
                        yield one, sums.pop(one).bounds


def _try_batch(
    network: Network, lock: AbstractContextManager[Any], batch: Sequence[_Canvas]
) -> list[list[float]] | None:
    """As `_logprobs_at`; None if memory ran out."""
    try:
        with lock:
            return _logprobs_at(network, batch)
    except (RuntimeError, MemoryError) as error:
        if not memory_ran_out(error):
            raise EngineError(f"the model failed mid-run: {error!s:.400}") from error
    collect(network.device)
    return None
