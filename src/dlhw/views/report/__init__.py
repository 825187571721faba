"""The report on a trained picture classifier: accuracy, mistakes, saliency maps and filters."""

from dlhw.views.report.classification import check, classifier

__all__ = ["check", "classifier"]
