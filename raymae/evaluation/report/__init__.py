"""Reports with tables and figures: of an evaluation, of a round of pseudo-labels, and of two evaluations compared."""

from raymae.evaluation.report.document import result_table
from raymae.evaluation.report.pseudo_labels import write_round
from raymae.evaluation.report.writing import FILES, write_report
from raymae.evaluation.wording import model_title

__all__ = ["FILES", "model_title", "result_table", "write_report", "write_round"]
