"""One live view for every long call: how far it is, how fast, what it cost; and a Stop that works.

`report = await watch(evaluate, task, engine, count=500)` in a notebook shows the view while the
cell waits. Without `await` the cell ends at once and the kernel is free; `job.result()` gives the
report later.
"""

from workbench.panel.job import Job, watch

__all__ = ["Job", "watch"]
