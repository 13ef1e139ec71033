"""Where runs are found and what is read of them: an MLflow store, run folders, or both."""
