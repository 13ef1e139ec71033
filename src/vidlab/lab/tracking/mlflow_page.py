"""What MLflow's web page shows of a run: source, description, data set and videos."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidlab.data.module import ClipDataModule
from vidlab.lab.runs.job import Job
from vidlab.lab.runs.provenance import Provenance
from vidlab.redaction import redact

LONGEST_DIGEST = 36  # as MLflow stores it


def described(job: Job, found: Provenance) -> dict[str, str]:
    """Tags that the page shows as source, and for a new run as its description, which its owner may edit later."""
    tags = {"mlflow.source.name": "train.py", "mlflow.source.type": "LOCAL", "vidlab.command": job.command}
    if job.resumed is None:
        parts = (f"{name} {found.packages[name] or 'source tree'}" for name in ("vidlab", "torch", "lightning"))
        tags["mlflow.note.content"] = f"`{job.command}`\n\n{', '.join(parts)}; files in `{job.folder}`"
    return tags


def dataset_of(data: ClipDataModule) -> Mapping[str, str]:
    """The data set as MLflow lists it: ``name``, ``digest``, ``source_type``, ``source`` and ``profile``."""
    clips = {"training clips": len(data.data.train), "held-out clips": len(data.data.val)}
    where = {key: str(value) for key, value in data.description.items() if value is not None}
    return {
        "name": str(data.name),
        "digest": data.data.hash.partition(":")[0][:LONGEST_DIGEST],
        "source_type": "vidlab",
        "source": redact(json.dumps(where or {"data": data.name})),
        "profile": json.dumps(clips),
    }


def log_dataset(client: Any, run_id: str, facts: Mapping[str, str]) -> None:
    """Add a data set, from ``dataset_of``, to the inputs of an MLflow run; one that it has already stays."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    used = DatasetInput(Dataset(**facts), [InputTag("mlflow.data.context", "training")])
    client.log_inputs(run_id, datasets=[used])


def store_video(client: Any, run_id: str, place: str, path: Path, step: int) -> None:
    """Keep a video among the files of an MLflow run as ``<place>/step-000100.mp4``."""
    with tempfile.TemporaryDirectory() as folder:
        client.log_artifact(run_id, shutil.copy(path, Path(folder) / f"step-{step:06d}{Path(path).suffix}"), place)
