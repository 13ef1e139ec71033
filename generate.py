"""Generate videos: ``python generate.py checkpoint=last prompt="a red square moving right"``."""

from omegaconf import DictConfig

from vidlab.lab.cli.hydra_main import main


@main(config_path="conf", config_name="generate", text_keys=("prompt",))
def generate(cfg: DictConfig) -> None:
    """Load a checkpoint, sample, write videos."""
    from vidlab.lab.generate import run_generation

    run_generation(cfg)


if __name__ == "__main__":
    generate()
