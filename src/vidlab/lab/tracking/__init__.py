"""MLflow: the logger, its queue, its store and its pages."""
