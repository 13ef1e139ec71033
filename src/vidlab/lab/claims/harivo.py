"""HARIVO: trainable and frozen parameters, losses, noise, sampling, and the arithmetic of its tables."""

import math
from collections.abc import Sequence
from functools import cache, partial

import torch

from vidlab.backbones.harivo.conditions import MAPPING_HEAD_DIM, MAPPING_HEADS
from vidlab.backbones.harivo.model import HARIVO
from vidlab.clip import LatentShape
from vidlab.diffusion.betas import Betas, LinearBetas, ScaledLinearBetas
from vidlab.diffusion.schedules import VariancePreserving
from vidlab.lab.claims.claim import Claim, Paper
from vidlab.lab.claims.jarque_bera import accepted, limit
from vidlab.lab.claims.sources import chosen, parameters, stable_diffusion_parameters
from vidlab.losses.contrastive import Projection
from vidlab.sampling.guidance_scales import EarlyScale
from vidlab.sampling.mitigating_gradient import mitigating_gradient
from vidlab.sampling.spacings import Leading

LATENT = LatentShape(channels=4, frames=24, height=32, width=32)
FIRST, LAST = 0.00085, 0.012
TABLE_A2 = {
    "baseline": ((41, 30, 16, 14), "25.25"), "+ TRS": ((72, 60, 60, 54), "61.5"), "+ contrastive": ((76, 61, 66, 69),
    "68"),
    "+ mapping network": ((81, 63, 73, 69), "71.5"), "+ frame-wise tokens": ((81, 68, 81, 76), "76.5"),
    "+ mitigating gradients": ((82, 68, 87, 85), "80.5"),
}  # fmt: skip
# Table 3: ours and theirs, in percent of votes.
TABLE_3 = {
    "natural motion, VideoLDM": (68.01, 31.98),
    "consistency, PYoCo": (76.47, 23.52),
    "quality, ModelScope": (71.61, 28.38),
}
TRIALS = 10_000


@cache
def _model(*parts: str) -> HARIVO:
    with torch.device("meta"):
        return HARIVO(LATENT, 768, temporal_parts=parts or ("down", "mid", "up"))


def _trainable() -> float:
    return sum(p.numel() for p in _model().parameters() if p.requires_grad) / 1e9


def _temporal(*parts: str) -> float:
    return parameters(_model(*parts).temporal, 1e9)


def _projection() -> float:
    with torch.device("meta"):
        return parameters(Projection(1280, (4, 4)), 1)


def _without_middle() -> float:
    """Billions of parameters with temporal layers around the middle block alone missing, the projection counted."""
    model = _model("down", "up")
    tokens = parameters(model.frame_tokens, 1e9) if model.frame_tokens is not None else 0.0
    return _temporal("down", "up") + tokens + parameters(model.mapping, 1e9) + _projection() / 1e9


def _frame_tokens() -> float:
    tokens = _model().frame_tokens
    assert tokens is not None
    return parameters(tokens, 1)


def _text_and_frame_tokens() -> float:
    tokens = _model().frame_tokens
    assert tokens is not None
    with torch.device("meta"):
        return float(tokens.text_tokens + tokens(torch.empty(1, 77, 768), 24).shape[2])


def _table(betas: Betas) -> torch.Tensor:
    return betas.values()


def _noise_ratio(betas: Betas) -> float:
    """Sigma over alpha at the last timestep."""
    remaining = float((1 - betas.values()).prod())
    return math.sqrt((1 - remaining) / remaining)


def _strong_steps() -> float:
    """Of 25 DDIM steps, those whose scale of guidance is not the later one."""
    schedule = VariancePreserving(ScaledLinearBetas(1000, FIRST, LAST))
    levels = Leading(offset=1).times(25, schedule)[:-1]
    scale = EarlyScale(start=10.0, end=10.0)
    return float(sum(scale.at(level - 1 / 1000) > scale.then for level in levels))


def _kernel() -> float:
    """exp(-|D|^2 / S) of algorithm 1 where all differences of 24 frames are alike."""
    frames = torch.arange(24, dtype=torch.float64).view(1, 1, -1, 1, 1)
    return float(mitigating_gradient(frames).flatten()[1]) / (2 * math.log(23))


def _loss(key: str) -> float:
    return chosen("losses/trs" if key.startswith("trs") else "losses/harivo", key)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _passed(alpha: float) -> float:
    return 100 * accepted(TRIALS, 24, 1024, alpha)


SIZES = (
    Claim("Table 2", "trainable parameters", "0.45", _trainable, "B",
          remark="temporal layers in the middle block too; 0.4556 is cut off. Without them and with the projection of "
          "the "
          "contrastive loss it is 0.4506"),
    Claim("Table 2", "trainable parameters, middle block without, projection with", "0.45", _without_middle, "B"),
    Claim("Table 2", "AnimateDiff's, temporal layers down and up", "0.43", partial(_temporal, "down", "up"), "B",
          contradicts="its published layers have 0.4171 or, with the middle block, 0.4532"),
    Claim("Table 2", "AnimateDiff's, with the middle block", "0.43", _temporal, "B", contradicts="see the row above"),
    Claim("Stable Diffusion 1, README", "the frozen UNet", "860", lambda: stable_diffusion_parameters()["unet"] / 1e6,
          "M"),
    Claim("Stable Diffusion 1, README", "the text tower", "123", lambda: stable_diffusion_parameters()["text"] / 1e6,
          "M"),
    Claim("appendix, listing", "parameters of the token generator", "2,367,912", _frame_tokens, within=0.0,
          derived=True, remark="the listing counted by hand: 4 maps of 768 and a kernel of 77 x 72"),
    Claim("appendix, listing", "parameters of the contrastive projection at 256 x 256", "31,133,440", _projection,
          within=0.0,
          derived=True, remark="the listing counted by hand: 16 x 1280^2 and three maps of 1280"),
    Claim("appendix, listing", "heads of the mapping network", "8", lambda: float(MAPPING_HEADS)),
    Claim("appendix, listing", "width of such a head", "64", lambda: float(MAPPING_HEAD_DIM)),
    Claim("section 3.5", "tokens that each frame's cross-attention reads: 77 + 3", "80", _text_and_frame_tokens),
)  # fmt: skip
TRAINING = (
    Claim("section 4", "weight of TRS", "0.1", partial(_loss, "trs.weight")),
    Claim("section 4", "weight of the contrastive loss", "0.1", partial(_loss, "contrastive.weight")),
    Claim("section 4", "weight of the regularization by the image model", "0.1", partial(_loss, "t2i.weight")),
    Claim("eq. 4", "temperature", "0.1", partial(_loss, "contrastive.temperature")),
    Claim("appendix D", "first beta", "0.00085", lambda: float(_table(LinearBetas(1000, FIRST, LAST))[0])),
    Claim("appendix D", "last beta", "0.012", lambda: float(_table(LinearBetas(1000, FIRST, LAST))[-1])),
    Claim("appendix D, section 3.7", "sigma / alpha at T, betas linear as printed", "25.15",
          lambda: _noise_ratio(LinearBetas(1000, FIRST, LAST)),
          derived=True, remark="not printed; what the printed betas give",
          contradicts="Stable Diffusion 1.5, which is frozen, was trained with linear square roots of betas, 14.61 at "
          "T; its code calls that linear too"),
    Claim("appendix D", "the same with linear square roots", "14.61", lambda: _noise_ratio(ScaledLinearBetas(1000,
          FIRST, LAST)),
          derived=True, remark="not printed either"),
    Claim("Table A1", "independent noise that passes Jarque-Bera", "94.42", partial(_passed, 0.0), "%", within=0.7,
          slow=True,
          remark="10,000 trials of 24 frames of 1024; three standard errors are 0.7"),
    Claim("Table A1", "correlated noise that passes Jarque-Bera", "63.01", partial(_passed, 1.0), "%", within=2.0,
          slow=True,
          remark="PYoCo's mixed noise with alpha = 1; three standard errors of both are 2.0",
          contradicts="all of it is jointly Gaussian; what fails is the independence that the test supposes"),
    Claim("Table A1", "correlated noise that passes, as frames grow", "63.01", lambda: 100 * limit(24, 1.0), "%",
          within=2.0,
          remark="P(3.875 X + 2.4375 Y < 5.99), X and Y chi squared of one degree"),
    Claim("Table A1", "independent noise that passes, as frames grow", "94.42", lambda: 100 * limit(24, 0.0), "%",
          within=0.7),
)  # fmt: skip
SAMPLING = (
    Claim("section 4", "strength of mitigating gradients", "40",
          partial(chosen, "guidance/mitigating_gradient", "scale")),
    Claim("algorithm 1", "kernel where all differences are alike: 1 / (F - 1)", "0.0435", _kernel,
          derived=True, remark="the equation evaluated for 24 frames"),
    Claim("appendix D", "DDIM steps", "25",
          lambda: float(len(Leading(offset=1).times(25, VariancePreserving(ScaledLinearBetas()))) - 1)),
    Claim("appendix D", "steps of 25 above 0.7 T, spaced as Stable Diffusion's", "7", _strong_steps,
          remark="levels 961, 921, ..., 721"),
    Claim("appendix D", "scale of guidance below 0.7 T", "7.5", lambda: EarlyScale().at(0.5)),
    Claim("appendix D", "scale of guidance at T", "15", lambda: EarlyScale().at(1.0),
          remark="10 to 15; ramp or choice is not told"),
    Claim("appendix D", "scale of guidance at 0.7 T", "10", lambda: EarlyScale().at(0.7)),
)  # fmt: skip
TABLES = (
    *(
        Claim("Table A2", f"mean of four percentages, {name}", mean, partial(_mean, values), "%")
        for name, (values, mean) in TABLE_A2.items()
    ),
    *(
        Claim("Table 3", f"both shares, {name}", "100", partial(sum, pair), "%", within=0.02,
              remark="both are cut off, not rounded")
        for name, pair in TABLE_3.items()
    ),
)  # fmt: skip

PAPER = Paper("HARIVO", "ECCV 2024", (*SIZES, *TRAINING, *SAMPLING, *TABLES))
