"""Compare finished runs: tables, figures, and the setting with the best validation metric."""

from dlhw.views.comparison.files import compare_runs
from dlhw.views.comparison.options import Comparison
from dlhw.views.comparison.ranking import Conclusion
from dlhw.views.comparison.results import declared_options, read, run_directories

__all__ = ["Comparison", "Conclusion", "compare_runs", "declared_options", "read", "run_directories"]
