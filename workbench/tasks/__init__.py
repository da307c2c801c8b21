"""Tasks: items, the prompts made from them, and graders."""

from workbench.tasks.claims import Claims
from workbench.tasks.options import Options
from workbench.tasks.sums import Sums
from workbench.tasks.verdicts import Verdicts
from workbench.tasks.word_problems import WordProblems

__all__ = ["Claims", "Options", "Sums", "Verdicts", "WordProblems"]
