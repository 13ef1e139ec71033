"""Where a browser shows what MLflow keeps."""

LOCAL = "http://127.0.0.1:5000"


def page(uri: str, experiment_id: str) -> str:
    """The address of an experiment's runs and curves. MLflow's front page leads to one for language models instead.

    Args:
        uri: of the store: a server's, or a database that ``mlflow ui`` will serve at its usual place.
        experiment_id: MLflow's number of the experiment.
    """
    return f"{_base(uri)}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def run_page(uri: str, experiment_id: str, run_id: str) -> str:
    """The address of one run; arguments as of ``page``."""
    return f"{_base(uri)}/#/experiments/{experiment_id}/runs/{run_id}"


def _base(uri: str) -> str:
    return uri.rstrip("/") if uri.startswith(("http://", "https://")) else LOCAL
