"""A program whose jobs train nothing: what a sweep is told, kept and continued by is the same."""

import json
import os
import signal
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import main
from vidlab.lab.sweeps.membership import membership


@main(config_path="conf", config_name="train")
def app(cfg):
    """Behave as ``cfg.x`` says; the second start of a job always ends well."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    first = not (folder / "started").exists()
    if cfg.x == "mistake":
        raise UserError("x must not be a mistake")
    if cfg.logger.uri and not cfg.ckpt_path:
        begin_run(cfg, folder)
    else:
        (folder / "run.json").write_text('{"mlflow_run_id": null, "experiment": "app"}')
    (folder / "started").touch()
    if cfg.x in ("saved", "saved-bug"):
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").touch()
    if first and cfg.x in ("bug", "saved-bug"):
        raise RuntimeError("a bug,\nin two lines")
    if first and cfg.x in ("signal", "saved"):
        os.kill(os.getpid(), getattr(signal, cfg.sent))
    with Path("log").open("a") as log:
        log.write(f"{cfg.x} {cfg.y} {bool(cfg.ckpt_path)}\n")
    summary = {"last": {"val/loss": len(cfg.x) + cfg.y / 8}, "shown": ["val/loss"]}
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary["last"]["val/loss"]


def begin_run(cfg, folder):
    """As training begins its MLflow run."""
    from vidlab.lab.tracking.mlflow_logger import MLflowLogger

    member = membership(folder)
    tags = member.tags() if member else {}
    logger = MLflowLogger(cfg.logger.uri, cfg.logger.experiment, tags=tags, system_metrics=False, folder=folder)
    logger.start()
    (folder / "run.json").write_text(json.dumps({"mlflow_run_id": logger.run_id, "experiment": "app"}))
    if cfg.x != "signal":
        logger.close("success")


if __name__ == "__main__":
    app()
