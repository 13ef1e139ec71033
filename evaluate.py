"""Evaluate runs or videos: ``python evaluate.py run=last``, ``python evaluate.py runs=[<a>,<b>]``."""

from omegaconf import DictConfig

from vidlab.lab.cli.hydra_main import main


@main(config_path="conf", config_name="evaluate")
def evaluate(cfg: DictConfig) -> None:
    """Generate for held-out captions, score, compare, report."""
    from vidlab.lab.evaluation.run import run_evaluation

    run_evaluation(cfg)


if __name__ == "__main__":
    evaluate()
