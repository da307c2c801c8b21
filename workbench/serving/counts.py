"""What a server has done since it started: all of it adds up, nothing is reset by looking."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workbench.engines.diffusion import Counts

WAITS = 4096  # the latest, of which quantiles are told


class Tally:
    """Counters that the event loop and the model's thread add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plain: Counter[str] = Counter()
        self._model: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._fill: Counter[int] = Counter()
        self._waits: deque[float] = deque(maxlen=WAITS)

    def add(self, what: str, count: int = 1) -> None:
        """More "requests", "batches" or "cancelled" rows."""
        with self._lock:
            self._plain[what] += count

    def add_error(self, kind: str) -> None:
        """An answer that was an error, by its OpenAI type."""
        with self._lock:
            self._errors[kind] += 1

    def add_wait(self, seconds: float) -> None:
        """A row's time from its arrival to its first forward."""
        with self._lock:
            self._waits.append(seconds)

    def add_step(self, before: Counts, after: Counts) -> None:
        """What a step of the denoiser did."""
        was = asdict(before)
        new = {name: value - was[name] for name, value in asdict(after).items()}
        with self._lock:
            self._model.update(new)
            if forwards := new["forwards"]:  # most often one, or one a kind of cache
                rows, more = divmod(new["rows"], forwards)
                self._fill[rows] += forwards - more
                self._fill[rows + 1] += more

    def view(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        with self._lock:
            plain, model, waits = self._plain, self._model, sorted(self._waits)
            return {
                "requests": plain["requests"],
                "batches": plain["batches"],
                "cancelled": plain["cancelled"],
                "errors": dict(sorted(self._errors.items())),
                "fill": {str(rows): n for rows, n in sorted(self._fill.items()) if n},
                "wait_seconds": {"p50": _quantile(waits, 0.5), "p95": _quantile(waits, 0.95)},
                "forwards": model["forwards"],
                "tokens_committed": model["committed"],
                "tokens_committed_per_forward": _share(model["committed"], model["forwards"]),
                "padding_share": _share(model["padding"], model["tokens"]),
                "out_of_memory": model["out_of_memory"],
            }


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
