"""CLIP and HPSv2 as scorers, on small models in their published formats."""

import pytest
import torch
from metric_clips import moving_clips
from test_clipsim import SMALL, folder
from torch import nn

from vidlab.clip import ClipBatch
from vidlab.errors import UserError
from vidlab.metrics.clipsim import CLIPSIM, image_features, text_features
from vidlab.metrics.rewards.clip import CLIPScore, HPSv2

__all__ = ["folder"]
WIDTH, WORDS, OUT = SMALL["hidden_size"], 7, 12
CAPTIONS = ("a red disc end", "a disc end")


class Block(nn.Module):
    """A residual block with the names and the arithmetic of open_clip."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, SMALL["num_attention_heads"], batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(WIDTH, SMALL["intermediate_size"]))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(SMALL["intermediate_size"], WIDTH))

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([Block()])


class Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(5, WIDTH))
        self.proj = nn.Parameter(torch.randn(WIDTH, OUT))
        self.conv1 = nn.Conv2d(3, WIDTH, 8, stride=8, bias=False)
        self.ln_pre, self.ln_post, self.transformer = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), Tower()

    def forward(self, images):
        x = self.conv1(images).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.transformer.resblocks[0](self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj


class OpenCLIP(nn.Module):
    """A CLIP with open_clip's names."""

    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(8, WIDTH))
        self.text_projection = nn.Parameter(torch.randn(WIDTH, OUT))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.visual, self.transformer = Visual(), Tower()
        self.token_embedding, self.ln_final = nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH)

    def text(self, ids, end):
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
        x = self.ln_final(self.transformer.resblocks[0](x, mask))
        return x[torch.arange(len(x)), end] @ self.text_projection


@pytest.fixture
def published(tmp_path):
    torch.manual_seed(3)
    model = OpenCLIP().half().float()
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    model = model.half().float()
    path = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": {name: value.half() for name, value in model.state_dict().items()}}, path)
    return model.eval(), path


def batch(captions=CAPTIONS) -> ClipBatch:
    keys = tuple(f"k{n}" for n in range(len(captions)))
    pixels = torch.zeros(len(captions), 3, 1, 4, 4)
    return ClipBatch(pixels, captions, keys, (0,) * len(captions), 0, (8.0,) * len(captions))


def test_clip_scores_what_the_metric_measures(folder):
    clips, metric = moving_clips(2, frames=3, size=20), CLIPSIM(str(folder))
    metric.update(clips, captions=list(CAPTIONS), keys=["a", "b"])
    found = CLIPScore(str(folder))(clips, batch())
    assert sorted(found.tolist()) == pytest.approx(sorted(metric.result().scores), abs=1e-5)


def test_published_weights_of_hpsv2_give_the_features_of_their_own_arithmetic(folder, published):
    model, path = published
    scorer = HPSv2(str(path), str(folder))
    images = moving_clips(1, frames=2, size=16)[0].transpose(0, 1)
    mean, std = (torch.tensor(scorer.loaded[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        shown = model.visual(((images + 1) / 2 - mean) / std)
        torch.testing.assert_close(image_features(scorer.loaded, images), shown, rtol=1e-4, atol=1e-4)
        told = model.text(torch.tensor([[2, 3, 5, 6], [2, 5, 6, 0]]), torch.tensor([3, 2]))
        found = text_features(scorer.loaded, CAPTIONS, torch.device("cpu"))
        torch.testing.assert_close(found, told, rtol=1e-4, atol=1e-4)
        by_hand = torch.cosine_similarity(shown, told[:1]).mean()
        torch.testing.assert_close(scorer(images.transpose(0, 1)[None], batch(CAPTIONS[:1]))[0], by_hand)


@pytest.mark.parametrize("kind", ["clip", "hps"])
def test_gradients_reach_the_pixels_and_no_weight(folder, published, kind):
    scorer = CLIPScore(str(folder)) if kind == "clip" else HPSv2(str(published[1]), str(folder))
    clips = (0.5 * moving_clips(2, frames=2, size=16)).requires_grad_()
    scorer(clips, batch()).sum().backward()
    assert clips.grad.isfinite().all() and (clips.grad.flatten(1).norm(dim=1) > 0).all()
    assert not any(p.requires_grad or p.grad is not None for p in scorer.loaded["model"].parameters())
    direction, step = torch.randn_like(clips), 1e-2
    ends = [scorer((clips + sign * step * direction).detach(), batch()).sum().item() for sign in (1, -1)]
    slope = (clips.grad * direction).sum().item()
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.1, abs=5e-3)


def test_what_is_not_published_weights_is_refused(folder, published, tmp_path):
    with pytest.raises(UserError, match=r"scorers\.clip\.path is not set"):
        CLIPScore()
    with pytest.raises(UserError, match=r"hps.path=.*give the file"):
        HPSv2(None, str(folder))
    other = tmp_path / "other.pt"
    weights = torch.load(published[1], weights_only=True)["state_dict"]
    torch.save({"state_dict": {n: v for n, v in weights.items() if n != "visual.proj"}}, other)
    with pytest.raises(UserError, match="does not fit"):
        HPSv2(str(other), str(folder))
    other.write_bytes(b"no weights")
    with pytest.raises(UserError, match="damaged"):
        HPSv2(str(other), str(folder))
