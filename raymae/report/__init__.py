"""What is said about a run: metrics by split, and pages of tables and figures, for clips of one class or of several."""

from raymae.report.evaluation import Evaluation, check_complete, comparisons, evaluation, heard, held_out, mistakes
from raymae.report.seeds import merge_seeds, seeds_text
from raymae.report.writing import FILES, write_report

__all__ = [
    "FILES",
    "Evaluation",
    "check_complete",
    "comparisons",
    "evaluation",
    "heard",
    "held_out",
    "merge_seeds",
    "mistakes",
    "seeds_text",
    "write_report",
]
