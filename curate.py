"""Prepare data: ``python curate.py stage=index|encode|curate|caption|dsg|pairs|refiner [key=value ...]``."""

from omegaconf import DictConfig

from vidlab.lab.cli.hydra_main import main
from vidlab.lab.runs import run_folder  # noqa: F401  registers the resolver of run folders


@main(config_path="conf", config_name="curate")
def curate(cfg: DictConfig) -> None:
    """Index, encode or caption a data set, make one of raw videos, or teach a prompt refiner."""
    from vidlab.lab.curate import run_curation

    run_curation(cfg)


if __name__ == "__main__":
    curate()
