"""The comparison of finished runs: tables, figures and the setting with the best validation metric."""

from dlhw.views.comparison.files import Comparison, conclude
from dlhw.views.comparison.ranking import Conclusion
from dlhw.views.comparison.results import declared, past_jobs, run_directories

__all__ = ["Comparison", "Conclusion", "conclude", "declared", "past_jobs", "run_directories"]
