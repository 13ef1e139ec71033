"""What a model has learned at each noise level, on held-out clips with fixed noise."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from vidlab.clip import ClipBatch
from vidlab.metrics.base import key_number
from vidlab.metrics.intervals import bootstrap_mean
from vidlab.metrics.results import MetricResult
from vidlab.precision import autocast
from vidlab.training.held_out import HeldOut
from vidlab.training.video_diffusion import VideoDiffusion

X0_MSE = "x0_mse"
Measure = Callable[[HeldOut], Tensor]


def errors_by_noise_level(
    module: VideoDiffusion, batches: Iterable[ClipBatch], levels: int, precision: str, learned: str
) -> dict[str, MetricResult]:
    """The objective at the middles of ``levels`` equal parts of [0, 1], and the x0 error at the module's log SNRs.

    The objective compares only between models that learn the same of the same latents; the squared x0 error, in pixels,
    compares between all.

    Args:
        module: the model, on its device.
        batches: held-out clips.
        levels: noise levels t.
        precision: of the denoiser.
        learned: names objective and autoencoder: models with different ones have objectives that do not compare.
    """
    measures = {f"loss_at_t/{t:g}": _loss_at(module, t) for t in _middles(levels)}
    measures |= {f"{X0_MSE}/log_snr_{value:g}": _x0_error_at(module, value) for value in module.log_snr_bins}
    found: dict[str, list[Tensor]] = {name: [] for name in measures}
    keys: list[str] = []
    shape = (0, 0, 0)
    for batch in batches:
        keys += batch.keys
        shape = batch.size
        with torch.inference_mode(), autocast(module.device.type, precision):
            held_out = module.measures.held_out(batch.to(module.device))
            for name, measure in measures.items():
                found[name].append(measure(held_out).double().cpu())
    results = {}
    for name, parts in found.items():
        settings = {"learned": learned} if name.startswith("loss") else {}
        results[name] = _result(name, keys, torch.cat(parts), shape, settings)
    errors = [torch.cat(parts) for name, parts in found.items() if name.startswith(X0_MSE)]
    bins = {"log_snr": ", ".join(f"{value:g}" for value in module.log_snr_bins)}
    results[X0_MSE] = _result(X0_MSE, keys, torch.stack(errors).mean(0), shape, bins)  # over all bins, as val/x0_mse
    return results


def _middles(levels: int) -> Sequence[float]:
    return [(2 * number + 1) / (2 * levels) for number in range(levels)]


def _loss_at(module: VideoDiffusion, t: float) -> Measure:
    return lambda held_out: module.measures.loss_at(held_out, held_out.x0.new_full((len(held_out.x0),), t)).per_clip


def _x0_error_at(module: VideoDiffusion, log_snr: float) -> Measure:
    return lambda held_out: module.measures.x0_errors(held_out, log_snr).flatten(1).mean(1)


def _result(
    name: str, keys: Sequence[str], scores: Tensor, shape: tuple[int, int, int], settings: dict[str, str]
) -> MetricResult:
    numbers = torch.tensor([key_number(key) for key in keys])
    order = numbers.argsort()
    frames, height, width = shape
    values = scores[order].tolist()
    return MetricResult(
        name, scores.mean().item(), False, len(keys), None, frames, 1, (height, width), "none", settings,
        interval=bootstrap_mean(values).interval, keys=tuple(numbers[order].tolist()), scores=tuple(values),
    )  # fmt: skip
