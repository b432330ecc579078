"""What is said about a run: metrics by split, and pages of tables and figures, for clips of one class or of several."""

from raymae.datasets.rows import held_out
from raymae.report.document import result_table
from raymae.report.evaluation import Evaluation, check_complete, comparisons, evaluation, heard, mistakes
from raymae.report.rounds import write_round
from raymae.report.sections import model_title
from raymae.report.writing import FILES, write_report

__all__ = [
    "FILES",
    "Evaluation",
    "check_complete",
    "comparisons",
    "evaluation",
    "heard",
    "held_out",
    "mistakes",
    "model_title",
    "result_table",
    "write_report",
    "write_round",
]
