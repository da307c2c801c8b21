"""How confident is a model, and is its confidence reliable? Questions with six options, and scores.

Asking (`elicit`, `sample_uncertainty`) is separate from scoring, which needs only a saved table.
"""

from workbench.uncertainty.calibration import calibration_report, rescaled
from workbench.uncertainty.conformal import conformal_report, conformal_splits, split_summary
from workbench.uncertainty.elicitation import elicit, option_prompts
from workbench.uncertainty.sampling import judged, sample_uncertainty
from workbench.uncertainty.selective_prediction import (
    from_options,
    risk_coverage,
    selective,
    selective_report,
    signals,
)
from workbench.uncertainty.tables import arrays, certainty, join_tables, paper_table, score_options

__all__ = [
    "arrays", "calibration_report", "certainty", "conformal_report", "conformal_splits", "elicit",
    "from_options", "join_tables", "judged", "option_prompts", "paper_table", "rescaled",
    "risk_coverage", "sample_uncertainty", "score_options", "selective", "selective_report",
    "signals", "split_summary",
]  # fmt: skip
