"""Tasks: items, the prompts made from them, and graders."""

from workbench.tasks.sums import Sums, claims

__all__ = ["Sums", "claims"]
