"""Prepare a data set: ``python curate.py stage=index|encode [group=choice ...] [key=value ...]``."""

from omegaconf import DictConfig

from vidlab.lab import run_folder  # noqa: F401  registers the resolver of run folders
from vidlab.lab.entry import main


@main(config_path="conf", config_name="curate")
def curate(cfg: DictConfig) -> None:
    """Index a data set, or encode it once for many runs."""
    from vidlab.lab.curate import run_curation

    run_curation(cfg)


if __name__ == "__main__":
    curate()
