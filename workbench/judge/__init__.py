"""Judging with language models: verdicts, comparisons and scores of existing answers."""

from workbench.judge.compat import LLMJudgeClient, compute_llm_judge_scores_batch
from workbench.judge.judge import Judge
from workbench.judge.templates import Case, Pair, Template, builtin, cases_of
from workbench.judge.votes import Mode

__all__ = [
    "Case", "Judge", "LLMJudgeClient", "Mode", "Pair", "Template", "builtin", "cases_of",
    "compute_llm_judge_scores_batch",
]  # fmt: skip
