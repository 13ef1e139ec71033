"""Train a video diffusion model: ``python train.py [group=choice ...] [key=value ...]``."""

from omegaconf import DictConfig

from vidlab.lab.cli.hydra_main import main
from vidlab.lab.runs import run_folder  # noqa: F401  registers the resolver of run folders


@main(config_path="conf", config_name="train")
def train(cfg: DictConfig) -> float | None:
    """Compose, train, return the last validation loss (the sweep's objective)."""
    from vidlab.lab.train import run_training

    return run_training(cfg)


if __name__ == "__main__":
    train()
