"""Classes that have moved: configurations in checkpoints of earlier versions are read with the names of today."""

from collections.abc import Mapping
from typing import Any

TARGET = "_target_"
# Modules of vidlab, then and now.
MODULES: Mapping[str, str] = {
    "autoencoders.wfvae_blocks": "autoencoders.wfvae.blocks",
    "autoencoders.wfvae_coders": "autoencoders.wfvae.coders",
    "autoencoders.wfvae_start": "autoencoders.wfvae.init",
    "autoencoders.wfvae_streaming": "autoencoders.causal_streaming",
    "autoencoders.wfvae_weights": "autoencoders.wfvae.weights",
    "callbacks.finiteness": "training.finiteness",
    "callbacks.interval": "training.step_interval",
    "data.bucket_plan": "data.samplers.bucket_plan",
    "data.bucketed": "data.samplers.bucketed",
    "data.buckets": "data.samplers.buckets",
    "data.cache": "data.storage.latent_cache",
    "data.captions": "data.tables.captions",
    "data.catalog": "data.datasets.annotated",
    "data.clip_plan": "data.samplers.plan",
    "data.clip_row": "data.storage.clip_row",
    "data.clips": "data.datasets.sample_clips",
    "data.csv_table": "data.tables.csv_table",
    "data.cut": "data.samplers.steps",
    "data.entry": "data.datasets.annotation",
    "data.folder": "data.datasets.folder",
    "data.folder_captions": "data.datasets.folder_captions",
    "data.history": "data.samplers.loader_history",
    "data.index": "data.storage.index",
    "data.index_checks": "data.storage.index_checks",
    "data.index_writer": "data.storage.index_writer",
    "data.json_list": "data.tables.json_list",
    "data.labels": "data.video.text_labels",
    "data.media": "data.video.contact_sheets",
    "data.open_sora_plan": "data.datasets.open_sora_plan",
    "data.panda": "data.datasets.panda70m",
    "data.parquet": "data.storage.parquet",
    "data.pictures": "data.video.pictures",
    "data.plan": "data.samplers.plan",
    "data.pool": "data.parallel",
    "data.published": "data.datasets.published",
    "data.repeats": "data.samplers.source_weights",
    "data.row_store": "data.storage.row_store",
    "data.shards": "data.storage.shards",
    "data.source": "data.datasets.base",
    "data.splits": "data.datasets.splits",
    "data.table_rows": "data.tables.table_rows",
    "data.tables": "data.tables.files",
    "data.tar_headers": "data.storage.tar_headers",
    "data.tar_scan": "data.storage.tar_scan",
    "data.tar_shards": "data.storage.tar_shards",
    "data.tar_source": "data.datasets.webdataset",
    "data.view": "data.clip_transform",
    "lab.arguments": "lab.cli.arguments",
    "lab.changes": "lab.runs.resume_check",
    "lab.config_record": "lab.runs.config_record",
    "lab.credentials": "lab.cli.credentials",
    "lab.entry": "lab.cli.hydra_main",
    "lab.footprint": "lab.evaluation.resource_usage",
    "lab.given_frames": "pipelines.conditioning_frames",
    "lab.help_text": "lab.cli.help_text",
    "lab.host": "lab.cli.process_env",
    "lab.job": "lab.runs.job",
    "lab.lean_imports": "lab.cli.lean_imports",
    "lab.messages": "lab.cli.error_messages",
    "lab.metric_queue": "lab.tracking.metric_queue",
    "lab.metric_record": "lab.tracking.metric_record",
    "lab.mlflow_names": "lab.tracking.mlflow_names",
    "lab.mlflow_page": "lab.tracking.mlflow_page",
    "lab.opening": "lab.runs.opening",
    "lab.progress": "lab.cli.progress",
    "lab.provenance": "lab.runs.provenance",
    "lab.run_folder": "lab.runs.run_folder",
    "lab.run_lock": "lab.runs.run_lock",
    "lab.run_start": "lab.runs.run_start",
    "lab.runs": "lab.runs.resolve",
    "lab.safe_text": "lab.cli.safe_text",
    "lab.signals": "lab.cli.signals",
    "lab.sqlite_store": "lab.tracking.sqlite_store",
    "lab.stopping": "lab.runs.stopping",
    "lab.store": "lab.tracking.store",
    "lab.summary": "lab.runs.summary",
    "lab.sweep_table": "lab.sweeps.table",
    "lab.systems.base": "pipelines.system",
    "lab.systems.folders": "pipelines.folders",
    "lab.systems.open_sora_plan": "pipelines.open_sora_plan",
    "lab.systems.open_sora_plan_parts": "pipelines.open_sora_plan_parts",
    "lab.tracking": "lab.tracking.mlflow_logger",
    "lab.unused_folder": "lab.cli.unused_folder",
    "metrics.consistency": "metrics.vbench.consistency",
    "metrics.distances": "metrics.sets.distances",
    "metrics.features": "metrics.sets.features",
    "metrics.fid": "metrics.sets.fid",
    "metrics.flow": "metrics.vbench.flow",
    "metrics.fvd": "metrics.sets.fvd",
    "metrics.is_i3d_k400": "metrics.sets.is_i3d_k400",
    "metrics.kvd": "metrics.sets.kvd",
    "metrics.lpips": "metrics.reconstruction.lpips",
    "metrics.motion": "metrics.vbench.motion",
    "metrics.psnr": "metrics.reconstruction.psnr",
    "metrics.rfvd": "metrics.sets.rfvd",
    "metrics.shapes.look": "metrics.shapes.parse",
    "metrics.shapes.seen": "metrics.shapes.parsed_scene",
    "metrics.shapes.waves": "metrics.shapes.gratings",
    "metrics.shapes_judge": "metrics.shapes.judge",
    "metrics.ssim": "metrics.reconstruction.ssim",
    "metrics.temporal_flickering": "metrics.vbench.temporal_flickering",
    "metrics.vbench": "metrics.vbench.scores",
    "metrics.vbench_presets": "metrics.vbench.presets",
    "registries": "package_index",
    "training.clipping": "training.optimization.clipping",
    "training.clipping_ddp": "training.optimization.clipping_ddp",
    "training.inheritance": "training.warm_start",
    "training.latent_moments": "training.autoencoder.latent_stats",
    "training.mirroring": "training.autoencoder.augmentation",
    "training.muon": "training.optimization.muon",
    "training.newton_schulz": "training.optimization.newton_schulz",
    "training.optimization": "training.optimization.optimizers",
    "training.optimizer_state": "training.optimization.optimizer_state",
    "training.perceptual": "training.autoencoder.perceptual",
    "training.player": "training.autoencoder.gan_step",
    "training.precision": "precision",
    "training.reconstruction": "training.autoencoder.reconstruction",
}
# Classes that have another name.
CLASSES: Mapping[str, str] = {
    "diffusion.objective.GaussianObjective": "diffusion.gaussian.GaussianObjective",
    "diffusion.parameterizations.Sample": "diffusion.parameterizations.X0Prediction",
    "sampling.guidance.CosineScale": "sampling.guidance_scales.CosineScale",
    "sampling.guidance.LinearScale": "sampling.guidance_scales.LinearScale",
    "sampling.sampler.Sampler": "sampling.gaussian.GaussianSampler",
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
