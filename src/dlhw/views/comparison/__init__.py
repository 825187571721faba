"""Compare finished runs: tables, figures, and the setting with the best validation metric."""

from dlhw.views.comparison.files import compare_results, compare_runs, conclusion_of
from dlhw.views.comparison.options import Comparison
from dlhw.views.comparison.ranking import Conclusion
from dlhw.views.comparison.results import Result, declared_options, place, read, run_directories, without_budget

__all__ = [
    "Comparison",
    "Conclusion",
    "Result",
    "compare_results",
    "compare_runs",
    "conclusion_of",
    "declared_options",
    "place",
    "read",
    "run_directories",
    "without_budget",
]
