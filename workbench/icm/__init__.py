"""Internal Coherence Maximization: label claims without supervision (arXiv 2506.10139)."""

from workbench.icm.annealing import Step
from workbench.icm.claim import Claim, Labelled, Wording, wording_from
from workbench.icm.compare import evaluate_chat, evaluate_labels, join
from workbench.icm.reading import comparisons, open_testbed, read_claims
from workbench.icm.report import ICMReport, salience, save_table, stands_out
from workbench.icm.scorer import compute_logprobs_batched
from workbench.icm.search import label_all, search
from workbench.icm.study import METHODS, ICMStudy, bootstrap, study
from workbench.icm.testbeds import Testbed, joined

__all__ = [
    "METHODS", "Claim", "ICMReport", "ICMStudy", "Labelled", "Step", "Testbed", "Wording",
    "bootstrap", "comparisons", "compute_logprobs_batched", "evaluate_chat", "evaluate_labels",
    "join", "joined", "label_all", "open_testbed", "read_claims", "salience", "save_table",
    "search", "stands_out", "study", "wording_from",
]  # fmt: skip
