"""Prepare a data set: ``python curate.py stage=index|encode|curate [group=choice ...] [key=value ...]``."""

from omegaconf import DictConfig

from vidlab.lab.cli.hydra_main import main
from vidlab.lab.runs import run_folder  # noqa: F401  registers the resolver of run folders


@main(config_path="conf", config_name="curate")
def curate(cfg: DictConfig) -> None:
    """Index a data set, encode it once for many runs, or make one of raw videos."""
    from vidlab.lab.curate import run_curation

    run_curation(cfg)


if __name__ == "__main__":
    curate()
