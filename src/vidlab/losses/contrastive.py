"""HARIVO's decoupled contrastive loss: two frames of a video mean the same, and something else than other videos."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from vidlab.clip import LossContext
from vidlab.errors import UserError
from vidlab.features import H_SPACE
from vidlab.losses.base import check_weight
from vidlab.randomness import KeyedRNG, seed_of

FREE = -1  # the video of a place in the queue that holds nothing


class Projection(nn.Module):
    """(C h w) -> C -> C -> C -> C with SiLU between, the first map without bias (HARIVO, appendix A).

    Args:
        channels: C.
        size: (h, w); features of another size are averaged to it.
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        first = nn.Linear(channels * size[0] * size[1], channels, bias=False)
        rest = [layer for _ in range(3) for layer in (nn.SiLU(), nn.Linear(channels, channels))]
        self.layers = nn.Sequential(first, *rest)

    def forward(self, h: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D"]:
        """One vector per frame."""
        if h.shape[2:] != self.size:
            h = F.adaptive_avg_pool2d(h, self.size)
        return self.layers(h.flatten(1))  # (B, C h w) to (B, D)


class DecoupledContrastive(nn.Module):
    """-<z1, z2> / tau + log sum_q exp(<z1, z_q> / tau), averaged over clips (Kwon et al. 2024, HARIVO, eq. 4).

    z1 and z2 are projected h-space features of two different frames of a clip, drawn by key (purpose
    "contrastive_frames"), and z_q those of other videos in a queue. The positive pair is not in the sum: the loss is
    decoupled (Yeh et al. 2022), and may be negative. After each step both z are queued, those of all processes on each
    of them. A video never meets itself: what the queue holds of the same clip key is left out. With nothing to compare
    with a clip's term is 0.

    The projection is trained with the model, which does not keep it.

    Args:
        weight: 0.1 in the paper.
        temperature: tau; 0.1 in the paper.
        queue: vectors held; not in the paper. The loss grows with its logarithm.
        normalize: z have length 1, as in Yeh et al. 2022; not in the paper. Without, the loss has no lower bound.

    Raises:
        UserError: an argument out of range.
    """

    requested = frozenset({H_SPACE})
    hidden_matrices = ("projection.layers.2.weight", "projection.layers.4.weight")  # between the first and the last
    projection: Projection
    vectors: Float[Tensor, "Q D"]
    videos: Int[Tensor, "Q"]
    next_place: Int[Tensor, ""]

    def __init__(
        self, weight: float = 0.1, temperature: float = 0.1, queue: int = 1024, normalize: bool = True
    ) -> None:
        super().__init__()
        check_weight("contrastive", weight)
        if temperature <= 0:
            raise UserError(f"losses.contrastive.temperature={temperature} must be positive; 0.1 is the paper's.")
        if queue < 1:
            raise UserError(f"losses.contrastive.queue={queue} must be at least 1.")
        self.weight, self.temperature, self.normalize = weight, temperature, normalize
        self.register_buffer("videos", torch.full((queue,), FREE))
        self.register_buffer("next_place", torch.zeros((), dtype=torch.int64))

    def fit_features(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make the projection and the queue for h-space features of one clip, (C, T, h, w)."""
        channels, _, *size = shapes[H_SPACE]
        self.projection = Projection(channels, (size[0], size[1]))
        self.register_buffer("vectors", torch.zeros(len(self.videos), channels))

    def forward(self, context: LossContext) -> Float[Tensor, ""]:
        """The unweighted term; in training its pairs are queued."""
        h = context.output.features[H_SPACE]
        assert isinstance(h, Tensor)
        first, second = two_frames(context.draw, h.shape[2])
        rows = torch.arange(len(h), device=h.device)
        z = self.projection(torch.cat([h[rows, :, first], h[rows, :, second]]))  # (2 B, D)
        own = video_numbers(context.batch.keys, h.device)
        with torch.autocast(h.device.type, enabled=False):
            z = F.normalize(z.float(), dim=-1) if self.normalize else z.float()
            z1, z2 = z.chunk(2)  # (B, D) each
            # a copy: the queue changes before the backward pass
            others = (self.videos != FREE) & (self.videos != own[:, None])  # (B, Q)
            value = decoupled_contrastive(z1, z2, self.vectors.float().clone(), others, self.temperature)
        if self.training:
            self.enqueue(z, own.repeat(2))
        return value if h.shape[2] > 1 else 0 * value  # one frame is no pair

    @torch.no_grad()
    def enqueue(self, z: Float[Tensor, "n D"], videos: Int[Tensor, "n"]) -> None:
        """Put vectors of all processes in place of the oldest."""
        z, videos = (_of_all_processes(part.detach())[-len(self.videos) :] for part in (z, videos))
        places = (torch.arange(len(z), device=z.device) + self.next_place) % len(self.videos)
        self.vectors.index_copy_(0, places, z.to(self.vectors))
        self.videos.index_copy_(0, places, videos)
        self.next_place.add_(len(z)).remainder_(len(self.videos))


def decoupled_contrastive(
    z1: Float[Tensor, "B D"],
    z2: Float[Tensor, "B D"],
    queue: Float[Tensor, "Q D"],
    others: Bool[Tensor, "B Q"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Equation 4, averaged over clips; those without ``others`` count 0.

    Args:
        z1, z2: of two frames of each clip.
        queue: of frames of any clips.
        others: which of them are of another video.
        temperature: tau.
    """
    # a large negative number, not -inf: a row without others must have finite gradients
    logits = (z1 @ queue.T / temperature).masked_fill(~others, torch.finfo(z1.dtype).min)  # (B, Q)
    terms = logits.logsumexp(dim=1) - (z1 * z2).sum(dim=1) / temperature  # eq. 4, (B,)
    return torch.where(others.any(dim=1), terms, 0 * terms.detach()).mean()


def two_frames(draw: KeyedRNG, frames: int) -> tuple[Int[Tensor, "B"], Int[Tensor, "B"]]:
    """Two different frames of each clip, every pair with the same probability; twice the same of a single frame."""
    u = draw.uniform("contrastive_frames", (2,))  # (B, 2)
    first = (u[:, 0] * frames).long().clamp(max=frames - 1)
    further = (u[:, 1] * (frames - 1)).long().clamp(max=max(frames - 2, 0)) + 1
    return first, (first + further) % frames


def video_numbers(keys: Sequence[str], device: torch.device) -> Int[Tensor, "B"]:
    """A number for each clip key, the same in every process and run."""
    numbers = torch.empty(len(keys), dtype=torch.int64, device=device)
    for place, key in zip(numbers, keys, strict=True):
        place.fill_(seed_of(key))  # no copy from the host: a GPU need not wait
    return numbers


def _of_all_processes(rows: Tensor) -> Tensor:
    """Rows of all ranks, rank by rank; batches of one step are of one size."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    found = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, rows.contiguous())
    return torch.cat(found)
