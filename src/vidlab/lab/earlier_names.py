"""Classes that have moved: configurations in checkpoints of earlier versions are read with the names of today."""

from collections.abc import Mapping
from typing import Any

TARGET = "_target_"
# Modules of vidlab, then and now.
MODULES: Mapping[str, str] = {
    "data.buckets": "data.samplers.buckets",
    "data.clips": "data.datasets.sample_clips",
    "data.folder": "data.datasets.folder",
    "data.panda": "data.datasets.panda70m",
    "data.published": "data.datasets.published",
    "data.tar_source": "data.datasets.webdataset",
    "lab.tracking": "lab.tracking.mlflow_logger",
    "metrics.consistency": "metrics.vbench.consistency",
    "metrics.features": "metrics.sets.features",
    "metrics.fid": "metrics.sets.fid",
    "metrics.fvd": "metrics.sets.fvd",
    "metrics.is_i3d_k400": "metrics.sets.is_i3d_k400",
    "metrics.kvd": "metrics.sets.kvd",
    "metrics.lpips": "metrics.reconstruction.lpips",
    "metrics.motion": "metrics.vbench.motion",
    "metrics.psnr": "metrics.reconstruction.psnr",
    "metrics.rfvd": "metrics.sets.rfvd",
    "metrics.shapes_judge": "metrics.shapes.judge",
    "metrics.ssim": "metrics.reconstruction.ssim",
    "metrics.temporal_flickering": "metrics.vbench.temporal_flickering",
    "training.clipping": "training.optimization.clipping",
    "training.muon": "training.optimization.muon",
    "training.optimization": "training.optimization.optimizers",
    "training.perceptual": "training.autoencoder.perceptual",
    "training.reconstruction": "training.autoencoder.reconstruction",
}


# Classes that have another name.
CLASSES: Mapping[str, str] = {
    "diffusion.parameterizations.Sample": "diffusion.parameterizations.X0Prediction",
}


def with_names_of_today(settings: Any) -> Any:
    """Settings, as nested dictionaries and lists, whose ``_target_`` stand where their classes are now."""
    if isinstance(settings, dict):
        return {
            key: _today(value) if key == TARGET and isinstance(value, str) else with_names_of_today(value)
            for key, value in settings.items()
        }
    return [with_names_of_today(item) for item in settings] if isinstance(settings, list) else settings


def _today(name: str) -> str:
    known = name.removeprefix("vidlab.")
    if known == name:
        return name
    module, _, own = known.rpartition(".")
    return f"vidlab.{CLASSES.get(known, f'{MODULES.get(module, module)}.{own}')}"
