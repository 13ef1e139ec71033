"""WF-VAE: sizes, strides, the causal cache, loss weights, stages, and the arithmetic of its tables."""

from collections.abc import Callable
from functools import cache, partial

import torch

from vidlab.autoencoders.base import Autoencoder
from vidlab.autoencoders.streaming import decode_in_chunks, encode_in_chunks
from vidlab.autoencoders.wfvae import WFVAE
from vidlab.lab.claims.claim import Claim, Paper
from vidlab.lab.claims.sources import parameters, setting
from vidlab.layers.causal import CausalConv3d, Stream
from vidlab.layers.wavelets import haar2d, haar3d
from vidlab.losses.adversarial import adaptive_weight

# Table 6: videos per second and gigabytes; Table 7: PSNR and LPIPS of direct and of block-wise inference.
SPEED = {"CV-VAE": 1.85, "OD-VAE": 2.63, "Allegro": 0.71, "S": 11.11, "L": 5.55}
MEMORY = {"CV-VAE": 25.00, "OD-VAE": 31.19, "Allegro": 54.35, "S": 4.70, "L": 7.00}
TABLE_7 = {"OD-VAE": ((30.31, 0.0439), (28.51, 0.0552)), "CogVideoX": ((35.79, 0.0198), (35.41, 0.0218))}
STAGES = tuple(f"experiment=paper/wfvae_stage{number}" for number in (1, 2, 3))


@cache
def model_s() -> WFVAE:
    """WF-VAE-S without memory."""
    with torch.device("meta"):
        return WFVAE()


def _size(unit: float, **settings: int) -> float:
    with torch.device("meta"):
        return parameters(WFVAE(**settings), unit)  # type: ignore[arg-type]


def _held(kernel: int, stride: int, frames: int) -> float:
    """Frames that a causal convolution keeps after the first frame and a chunk."""
    layer, stream = CausalConv3d(1, 1, (kernel, 1, 1), (stride, 1, 1)), Stream()
    with torch.no_grad():
        layer(torch.zeros(1, 1, 1, 1, 1), stream)
        stream.first = False
        layer(torch.zeros(1, 1, frames, 1, 1), stream)
    return float(stream.held_values())


@cache
def _small() -> tuple[Autoencoder, torch.Tensor, torch.Tensor]:
    """A small network of random weights, a clip of 33 frames, and its latents in one piece."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WFVAE(4, 8, 4, 4, 1, 1).eval()
        clip = torch.rand(1, 3, 33, 16, 16) * 2 - 1
    with torch.no_grad():
        return model, clip, model.encode(clip)


def _psnr_lost_in_chunks() -> float:
    model, clip, latents = _small()
    with torch.no_grad():
        whole, parts = model.decode(latents), decode_in_chunks(model, encode_in_chunks(model, clip, 8), 2)
    errors = [(video - clip).square().mean() for video in (whole, parts)]
    return float(10 * torch.log10(errors[0] / errors[1]))


def _halvings(steps: tuple[Callable[[torch.Tensor], torch.Tensor], ...], axis: int) -> float:
    """How much shorter wavelet steps on the low band make an axis."""
    video = torch.zeros(1, 1, 8, 16, 16)
    before = video.shape[axis]
    for step in steps:
        video = step(video)[:, :1]
    return before / video.shape[axis]


def _balanced() -> float:
    """The adversary's weight where both losses pull at the last layer alike."""
    layer = torch.ones(4, requires_grad=True)
    return float(adaptive_weight(layer.sum(), layer.sum(), layer))


def _quotient(table: dict[str, float], above: str, below: str) -> float:
    return table[above] / table[below]


def _change(model: str, column: int) -> float:
    direct, chunks = TABLE_7[model]
    return chunks[column] - direct[column]


def _stage(number: int, key: str) -> float:
    return setting(key, STAGES[number - 1], "autoencoder.path=null")


THREE_D_TWICE = (haar3d, haar3d, haar2d)
NETWORK = (
    Claim("WF-VAE, released file", "WF-VAE-L in float32", "1.27",
          lambda: 4 * _size(1e9, width=192, latent_channels=16, encoder_energy=128), "GB",
          remark="317.1 million parameters"),
    Claim("section 2.1", "compression in time", "4", lambda: float(model_s().stride.frames)),
    Claim("section 2.1", "compression in height", "8", lambda: float(model_s().stride.height)),
    Claim("section 2.1", "compression in width", "8", lambda: float(model_s().stride.width)),
    Claim("section 2.1", "in time, of two 3-D wavelet steps and a 2-D one", "4", partial(_halvings, THREE_D_TWICE, 2),
          contradicts="the released network steps 3-D, 2-D, 3-D, which compresses alike"),
    Claim("section 2.1", "in space, of two 3-D wavelet steps and a 2-D one", "8", partial(_halvings, THREE_D_TWICE, 3)),
    Claim("eq. 5, Fig. 3", "frames kept, kernel 3, stride 1, chunks of 4", "2", partial(_held, 3, 1, 4)),
    Claim("eq. 5", "frames kept, kernel 3, stride 2, chunks of 4", "1", partial(_held, 3, 2, 4),
          derived=True, remark="the equation evaluated"),
    Claim("eq. 5", "frames kept, kernel 2, stride 2, chunks of 4", "0", partial(_held, 2, 2, 4),
          derived=True, remark="the equation evaluated"),
    Claim("Table 7", "PSNR lost by block-wise inference with the causal cache", "0.00", _psnr_lost_in_chunks, "dB",
          remark="small network, random weights, 33 frames in chunks of 8",
          contradicts="the decoder in Open-Sora Plan's repository, in chunks of 2, is not lossless at 93 frames"),
)  # fmt: skip
TRAINING = (
    Claim("eq. 4", "weight of the adversary where both gradients are alike", "0.5", _balanced, within=1e-6),
    Claim("section 2.1", "learning rate, x 1e-5", "1", lambda: 1e5 * _stage(1, "optimizer.lr"), within=1e-9),
    Claim("section 2.1", "beta 2 of AdamW", "0.999", lambda: _stage(1, "optimizer.algorithm.betas[1]")),
    Claim("section 2.1", "frames of stage 1", "25", partial(_stage, 1, "data.frames")),
    Claim("section 2.1", "side of clips", "256", partial(_stage, 1, "data.height"), "pixels"),
    Claim("section 2.1", "frames of stage 2", "49", partial(_stage, 2, "data.frames")),
    Claim("section 2.1", "frame rate of stage 2 over that of stage 1", "0.5",
          lambda: _stage(1, "data.frame_stride") / _stage(2, "data.frame_stride")),
    Claim("section 2.1", "weight of LPIPS in stage 3", "0.1", partial(_stage, 3, "task.weights.perceptual")),
    *(
        Claim("section 2.1", f"steps of stage {number}", steps, partial(_stage, number, "trainer.max_steps"))
        for number, steps in ((1, "800,000"), (2, "200,000"), (3, "200,000"))
    ),
)  # fmt: skip
TABLES = (
    Claim("section 5.1, Table 6", "throughput of S over CV-VAE's", "6", partial(_quotient, SPEED, "S", "CV-VAE")),
    Claim("section 5.1, Table 6", "throughput of S over OD-VAE's", "4", partial(_quotient, SPEED, "S", "OD-VAE")),
    Claim("section 5.1, Table 6", "throughput of L over Allegro's", "7.8", partial(_quotient, SPEED, "L", "Allegro")),
    Claim("section 5.1, Table 6", "memory of CV-VAE over S's", "5", partial(_quotient, MEMORY, "CV-VAE", "S")),
    Claim("section 5.1, Table 6", "memory of OD-VAE over S's", "7", partial(_quotient, MEMORY, "OD-VAE", "S")),
    Claim("section 5.1, Table 6", "memory of Allegro over L's", "8", partial(_quotient, MEMORY, "Allegro", "L")),
    Claim("Table 7", "change of OD-VAE's PSNR by tiles", "-1.80", partial(_change, "OD-VAE", 0), "dB"),
    Claim("Table 7", "change of OD-VAE's LPIPS by tiles", "0.011", partial(_change, "OD-VAE", 1)),
    Claim("Table 7", "change of CogVideoX's PSNR by blocks", "-0.38", partial(_change, "CogVideoX", 0), "dB"),
    Claim("Table 7", "change of CogVideoX's LPIPS by blocks", "0.002", partial(_change, "CogVideoX", 1)),
)  # fmt: skip

PAPER = Paper("WF-VAE (in Open-Sora Plan v1.3)", "arXiv 2412.00131", (*NETWORK, *TRAINING, *TABLES))
