"""Loggers: what a run writes to its directory is also sent to TensorBoard, MLflow and others."""
