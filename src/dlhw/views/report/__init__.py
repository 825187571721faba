"""What a trained classifier of pictures gets right and wrong, and what it looks at."""

from dlhw.views.report.classification import check, classifier

__all__ = ["check", "classifier"]
