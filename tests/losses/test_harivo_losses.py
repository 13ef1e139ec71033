"""HARIVO's losses: their values by hand, and in training."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from vidlab.backbones.base import BackboneSpec, VideoDenoiser
from vidlab.backbones.dit import DiT
from vidlab.backbones.mmdim import MMDiM
from vidlab.backbones.open_sora_plan import OpenSoraPlan
from vidlab.backbones.stiv import STIV
from vidlab.callbacks.ema import EMA
from vidlab.clip import TOKEN_DROP, ClipBatch, DenoiserInput, DenoiserOutput, LatentShape, LossContext, TextEmbedding
from vidlab.errors import UserError
from vidlab.features import H_SPACE, IMAGE_BRANCH, SELF_ATTENTION, FrameAttention
from vidlab.layers.layouts import Full3D, LayerPlan, SingleSkip, Spatial, Temporal
from vidlab.layers.mixers.attention_mixer import AttentionMixer
from vidlab.losses.attention_variation import attention_variation
from vidlab.losses.contrastive import DecoupledContrastive, Projection, decoupled_contrastive, two_frames, video_numbers
from vidlab.losses.t2i import T2IRegularization
from vidlab.losses.trs import TRS
from vidlab.randomness import KeyedRNG
from vidlab.training.checkpoint_io import load_checkpoint
from vidlab.training.optimization.optimizers import OptimizerFactory


def context(keys="ab", frames=4, t=None, prediction=None, epoch=0, **features) -> LossContext:
    count = len(keys)
    prediction = torch.zeros(count, 1, frames, 2, 2) if prediction is None else prediction
    t = torch.full((count,), 0.5) if t is None else t
    epochs = (epoch,) * count
    batch = ClipBatch(torch.zeros(count, 3, frames, 2, 2), ("",) * count, tuple(keys), epochs, 0, (8.0,) * count)
    return LossContext(
        batch, DenoiserInput(prediction, t, t), DenoiserOutput(prediction, features), prediction, 0, batch.draw(0),
        latent=LatentShape(*prediction.shape[1:]),
        x0_of=lambda output, input: output.prediction, decode=lambda latents: latents,
    )  # fmt: skip


# TRS


def layer(seed: int) -> FrameAttention:
    generator = torch.Generator().manual_seed(seed)
    return FrameAttention(*(torch.randn(2, 4, 6, 2, 3, generator=generator) for _ in range(2)))


def test_later_layers_count_more():
    layers = tuple(map(layer, range(3)))
    one, two, three = (attention_variation(part.q, part.k).item() for part in layers)
    found = TRS()(context(**{SELF_ATTENTION: layers}))
    assert found.item() == pytest.approx(one / 3 + two * 2 / 3 + three)


def test_the_size_that_the_reduction_gives():
    # nine layers, 24 frames; a share of 1/4 of attention moves at each step, among 8^2, 16^2 and 32^2 keys, three each
    share, pairs = 0.25, 23
    value = sum(number / 9 * pairs * 2 * share / keys for number, keys in enumerate(
        [64] * 3 + [256] * 3 + [1024] * 3, start=1))  # fmt: skip
    assert value == pytest.approx(0.898 * share, rel=1e-3)


# regularization by the image branch


def test_low_noise_counts_and_pure_noise_does_not():
    prediction = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1, 1).expand(2, 1, 4, 2, 2)
    image = torch.zeros(2, 1, 4, 2, 2)
    found = T2IRegularization()(context(prediction=prediction, t=torch.tensor([0.25, 0.5]), image_branch=image))
    assert found.item() == pytest.approx((0.75 * 1 + 0.5 * 4) / 2)
    noise = context(prediction=prediction, t=torch.ones(2), image_branch=image)
    assert T2IRegularization()(noise) == 0
    by_frame = torch.tensor([[0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.5]])
    found = T2IRegularization()(context(prediction=prediction, t=by_frame, image_branch=image))
    assert found.item() == pytest.approx((1 * 1 + 0.5 * 4) / 8)


def test_gradients_reach_both_branches():
    video, image = (torch.randn(1, 1, 4, 2, 2, requires_grad=True) for _ in range(2))
    T2IRegularization()(context("a", prediction=video, image_branch=image)).backward()
    torch.testing.assert_close(video.grad, -image.grad)
    assert video.grad.any()


# the contrastive loss


def test_the_value_by_hand():
    exact = partial(torch.tensor, dtype=torch.float64)
    z1, z2, queue = exact([[1.0, 0.0]]), exact([[0.6, 0.8]]), exact([[0.0, 1.0], [-1.0, 0.0], [0.8, 0.6]])
    found = decoupled_contrastive(z1, z2, queue, torch.ones(1, 3, dtype=torch.bool), 0.1)
    assert found.item() == pytest.approx(2.000335422, abs=1e-9)
    # with the positive pair in the sum, as InfoNCE has it, another number comes out
    coupled = math.log(sum(math.exp(x / 0.1) for x in (0.6, 0.0, -1.0, 0.8))) - 6
    assert coupled == pytest.approx(2.127223, abs=1e-6)


def test_a_clip_without_others_counts_nothing_and_its_gradient_is_finite():
    z1 = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    z2, queue = torch.tensor([[0.6, 0.8], [0.6, 0.8]]), torch.tensor([[0.0, 1.0]])
    found = decoupled_contrastive(z1, z2, queue, torch.tensor([[True], [False]]), 0.1)
    assert found.item() == pytest.approx((0 - 6) / 2)
    found.backward()
    assert z1.grad.isfinite().all() and z1.grad[0].any() and not z1.grad[1].any()


def test_the_projection_has_the_published_size():
    with torch.device("meta"):
        projection = Projection(1280, (4, 4))
    assert sum(p.numel() for p in projection.parameters()) == 31_133_440
    small = Projection(4, (2, 2))
    assert small(torch.randn(3, 4, 2, 2)).shape == small(torch.randn(3, 4, 4, 6)).shape == (3, 4)


@pytest.mark.parametrize("frames", [2, 3, 24])
def test_two_different_frames(frames):
    first, second = two_frames(KeyedRNG(0, tuple(map(str, range(2000))), (0,) * 2000), frames)
    assert (first != second).all() and min(first.min(), second.min()) == 0
    assert max(first.max(), second.max()) == frames - 1
    pairs = torch.bincount(first * frames + second, minlength=frames**2)
    expected = 2000 / (frames * (frames - 1))
    assert (pairs[pairs > 0].numel() == frames * (frames - 1)) if frames < 4 else True
    assert pairs.max() < 4 * expected + 10


def made(queue=6, channels=3) -> DecoupledContrastive:
    torch.manual_seed(0)
    term = DecoupledContrastive(queue=queue)
    term.fit_features({H_SPACE: (channels, 4, 2, 2)})
    return term


def features(keys: str, seed: int) -> torch.Tensor:
    return torch.randn(len(keys), 3, 4, 2, 2, generator=torch.Generator().manual_seed(seed))


def test_the_queue_never_holds_the_current_video():
    term = made(queue=8)
    assert term(context("ab", h_space=features("ab", 0))) == 0, "nothing to compare with"
    own = video_numbers("abab", torch.device("cpu"))
    assert torch.equal(term.videos[:4], own) and (term.videos[4:] == -1).all()
    stored = term.vectors.clone()
    found = term(context("ac", h_space=features("ac", 1), epoch=1))
    assert torch.equal(term.videos[4:], video_numbers("acac", torch.device("cpu")))
    z1, z2 = term.vectors[4:6], term.vectors[6:]
    of_a = torch.tensor([[False, True, False, True] + 4 * [False], 4 * [True] + 4 * [False]])
    assert found.item() == pytest.approx(decoupled_contrastive(z1, z2, stored, of_a, 0.1).item(), rel=1e-5)


def test_the_oldest_leave_first_and_validation_leaves_the_queue_alone():
    term = made(queue=6)
    term(context("ab", h_space=features("ab", 0)))
    term(context("cd", h_space=features("cd", 1)))
    expected = video_numbers("cdcdab", torch.device("cpu"))  # a, b, a, b, c, d, then c, d over a, b
    expected = torch.cat([expected[2:4], expected[[4, 5]], expected[:2]])
    assert torch.equal(term.videos, expected) and term.next_place == 2
    term.eval()(context("ef", h_space=features("ef", 2)))
    assert torch.equal(term.videos, expected)
    small = made(queue=2)
    small(context("abc", h_space=features("abc", 0)))
    assert torch.equal(small.videos, video_numbers("bc", torch.device("cpu")))


def test_vectors_have_length_one_and_the_projection_learns():
    term = made()
    term(context("ab", h_space=features("ab", 0)))
    torch.testing.assert_close(term.vectors[:4].norm(dim=1), torch.ones(4))
    h = features("cd", 1).requires_grad_()
    term(context("cd", h_space=h)).backward()
    assert all(p.grad is not None and p.grad.any() for p in term.projection.parameters())
    frames = h.grad.abs().sum(dim=(1, 3, 4)) > 0
    assert (frames.sum(dim=1) == 2).all(), "two frames of each clip"


def test_matrices_between_the_first_and_the_last_suit_muon():
    groups = OptimizerFactory(torch.optim.SGD, lr=0.1).groups(made())
    hidden = [name for group in groups for name in group["hidden"]]
    assert hidden == ["projection.layers.2.weight", "projection.layers.4.weight"]


def test_one_frame_is_no_pair():
    term = made()
    term(context("ab", h_space=features("ab", 0)))
    value = term(context("cd", frames=1, h_space=features("cd", 1)[:, :, :1]))
    value.backward()
    assert value == 0 and not any(p.grad.any() for p in term.projection.parameters())


def test_half_precision_is_close():
    term, other = made(), made()
    for keys, seed in (("ab", 0), ("cd", 1)):
        exact = term(context(keys, h_space=features(keys, seed)))
        with torch.autocast("cpu", torch.bfloat16):
            rough = other(context(keys, h_space=features(keys, seed).bfloat16()))
    assert rough.dtype == torch.float32 and rough.item() == pytest.approx(exact.item(), abs=0.2)
    rough.backward()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(TRS, weight=-1.0), r"losses\.trs\.weight=-1\.0"),
        (partial(TRS, chunk=0), r"losses\.trs\.chunk=0"),
        (partial(T2IRegularization, weight=-1.0), r"losses\.t2i\.weight"),
        (partial(DecoupledContrastive, weight=-1.0), r"losses\.contrastive\.weight"),
        (partial(DecoupledContrastive, temperature=0.0), r"losses\.contrastive\.temperature=0\.0"),
        (partial(DecoupledContrastive, queue=0), r"losses\.contrastive\.queue=0"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(UserError, match=message):
        make()


# attention of the transformer as a feature


FACTORIZED = (Spatial(), Temporal())


def dit(layouts=FACTORIZED, depth=6, **settings) -> DiT:
    torch.manual_seed(0)
    model = DiT(LatentShape(3, 4, 4, 6), 8, LayerPlan(layouts), 24, depth, 2, (2, 2, 2), **settings)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def noisy(requested=frozenset()) -> DenoiserInput:
    generator = torch.Generator().manual_seed(1)
    text = TextEmbedding(torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 8))
    t = torch.tensor([0.3, 0.6])
    return DenoiserInput(torch.randn(2, 3, 4, 4, 6, generator=generator), t, t, text, requested=requested)


@pytest.mark.parametrize(
    ("layouts", "depth", "expected"),
    [((Full3D(),), 4, 2), ((Full3D(),), 3, 2), ((Spatial(), Temporal()), 6, 2), ((Temporal(),), 2, 0)],
)
def test_attention_of_the_later_layers_that_see_whole_frames(layouts, depth, expected):
    model = dit(layouts, depth)
    assert model.spec.features == ({SELF_ATTENTION} if expected else set())
    if expected:
        plain, output = model(noisy()), model(noisy(frozenset({SELF_ATTENTION})))
        assert plain.features == {} and set(output.features) == {SELF_ATTENTION}
        assert torch.equal(plain.prediction, output.prediction)
        layers = output.features[SELF_ATTENTION]
        assert len(layers) == expected and all(part.q.shape == part.k.shape == (2, 2, 6, 2, 12) for part in layers)
    else:
        with pytest.raises(ValueError, match="no feature"):
            model(noisy(frozenset({SELF_ATTENTION})))


def test_maps_of_spatial_attention_are_those_that_mix_values(monkeypatch):
    model = dit((Spatial(),), depth=1)
    seen = {}

    def kernel(q, k, v, mask):
        seen.update(q=q, k=k)
        return v

    model.blocks[0].attention.kernel = kernel
    (found,) = model(noisy(frozenset({SELF_ATTENTION}))).features[SELF_ATTENTION]
    torch.testing.assert_close(found.q.flatten(0, 1), seen["q"])
    torch.testing.assert_close(found.k.flatten(0, 1), seen["k"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_trains_the_transformer_with_recomputed_activations_too(checkpointing):
    gradients = []
    for recomputed in (False, checkpointing):
        model = dit(activation_checkpointing=recomputed).train()
        output = model(noisy(frozenset({SELF_ATTENTION})))
        TRS()(context(**dict(output.features))).backward()
        gradients.append(model.blocks[0].attention.qkv.weight.grad)
        assert model.blocks[4].attention.qkv.weight.grad.any() and model.blocks[5].attention.qkv.weight.grad is None
    torch.testing.assert_close(*gradients)


def stiv(**settings) -> STIV:
    return STIV(LatentShape(3, 4, 4, 6), 8, width=24, depth=3, heads=2, patch=(2, 2, 2), **settings)


def open_sora_plan() -> OpenSoraPlan:
    layouts = LayerPlan((Full3D(), SingleSkip(2)))
    return OpenSoraPlan(LatentShape(3, 4, 4, 6), 8, layouts, width=24, depth=4, heads=2, patch=(2, 2, 2))


def mmdim() -> MMDiM:
    sizes = {"width": 24, "depth": 1, "heads": 2, "patch": (2, 2, 2), "dual_depth": 3}
    return MMDiM(LatentShape(3, 4, 4, 6), 8, mixer=AttentionMixer, **sizes)


@pytest.mark.parametrize(("make", "layers", "first"), [(stiv, 2, "blocks.1"), (mmdim, 2, "dual_blocks.1"),
                                                       (open_sora_plan, 1, "transformer_blocks.2")])  # fmt: skip
@pytest.mark.parametrize("recomputed", [False, True])
def test_other_transformers_offer_the_later_attention_that_sees_whole_frames(make, layers, first, recomputed):
    torch.manual_seed(0)
    model = make()
    assert model.spec.features == {SELF_ATTENTION}
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.activation_checkpointing = recomputed
    plain, output = model.train()(noisy()), model(noisy(frozenset({SELF_ATTENTION})))
    assert plain.features == {} and torch.equal(plain.prediction, output.prediction)
    found = output.features[SELF_ATTENTION]
    assert len(found) == layers and all(part.q.shape == part.k.shape == (2, 2, 6, 2, 12) for part in found)
    TRS()(context(**dict(output.features))).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith(first) for name in reached) and "embed.weight" in reached | {
        "embed.weight" for name in reached if name.startswith("pos_embed")
    }


@pytest.mark.parametrize(
    ("make", "attention"),
    [(stiv, lambda m: m.blocks[2].spatial), (mmdim, lambda m: m.dual_blocks[2]),
     (open_sora_plan, lambda m: m.transformer_blocks[2].attn1)],
)  # fmt: skip
def test_maps_of_other_transformers_are_those_that_mix_values(make, attention):
    torch.manual_seed(0)
    model, seen = make(), []
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    attention(model).kernel = lambda q, k, v, mask: seen.append((q, k)) or v
    found = model(noisy(frozenset({SELF_ATTENTION}))).features[SELF_ATTENTION][-1]
    q, k = (part[..., -12:, :, :] if part.shape[0] == 2 else part for part in seen[0])  # the text comes before
    torch.testing.assert_close(found.q, q.reshape(found.q.shape))
    torch.testing.assert_close(found.k, k.reshape(found.k.shape))


def test_of_dropped_places_there_are_no_maps():
    model = stiv(mask_ratio=0.5, unmask_blocks=1).train()
    input = noisy(frozenset({SELF_ATTENTION}))
    found = model(replace(input, micro={TOKEN_DROP: torch.rand(2, 6)})).features[SELF_ATTENTION]
    assert [layer.q.shape[2] for layer in found] == [3, 6]


def test_a_model_of_single_streams_alone_has_no_maps():
    sizes = {"width": 24, "depth": 1, "heads": 2, "patch": (2, 2, 2), "dual_depth": 0}
    assert MMDiM(LatentShape(3, 4, 4, 6), 8, mixer=AttentionMixer, **sizes).spec.features == frozenset()


# all three in training


class Small(VideoDenoiser):
    """A tiny network that offers all features: a frozen image model and trained layers before and after it."""

    spec = BackboneSpec(features=frozenset({SELF_ATTENTION, H_SPACE, IMAGE_BRANCH}))

    def __init__(self, latent, text_width):
        super().__init__()
        self.before = nn.Conv3d(latent.channels, 6, 1)
        self.image = nn.Conv3d(6, latent.channels, 1).requires_grad_(False)
        self.after = nn.Conv3d(latent.channels, latent.channels, (3, 1, 1), padding=(1, 0, 0))

    def token_count(self, latent):
        return 1

    def forward(self, input):
        self.check_requested(input.requested)
        hidden = self.before(input.latents)  # (B, 6, T, H, W)
        image = self.image(hidden)
        tokens = hidden.flatten(3).permute(0, 2, 3, 1).unflatten(-1, (2, 3))  # (B, T, L, 2, 3)
        small = nn.functional.avg_pool3d(hidden, (1, 4, 4))
        found = {SELF_ATTENTION: (FrameAttention(tokens, tokens),) * 2, H_SPACE: small, IMAGE_BRANCH: image}
        return DenoiserOutput(self.after(image), {name: found[name] for name in input.requested})


def terms() -> dict:
    return {"trs": TRS(), "contrastive": DecoupledContrastive(queue=8), "t2i": T2IRegularization()}


def test_all_three_are_logged_trained_stored_and_resumed(make_module, make_batch, make_trainer, tmp_path):
    ema = EMA(0.9)
    module = make_module(built=False, backbone=Small, regularizers=terms())
    trainer = make_trainer(max_steps=2, callbacks=[ema])
    trainer.fit(module, [make_batch("ab", number=0), make_batch("cd", number=1)])
    metrics = trainer.callback_metrics
    values = {name: metrics[f"train/{name}"].item() for name in ("trs", "contrastive", "t2i")}
    assert all(math.isfinite(value) and value for value in values.values())
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    stored = load_checkpoint(path)["state_dict"]
    own = {name for name in stored if name.startswith("regularizer_modules.contrastive.")}
    assert {f"regularizer_modules.contrastive.{name}" for name in ("vectors", "videos", "next_place")} < own
    assert len(own) == 3 + 7 and not any("regularizer" in name for name in ema.average)
    other = make_module(built=False, backbone=Small, regularizers=terms())
    make_trainer(max_steps=2).fit(other, [make_batch("ab")], ckpt_path=path)
    old, new = (m.regularizers.terms["contrastive"].state_dict() for m in (module, other))
    assert all(torch.equal(new[name], value) for name, value in old.items())
    assert set(new["videos"].tolist()) == set(video_numbers("abcd", torch.device("cpu")).tolist())


def test_the_projection_changes_in_training(make_module, make_batch, make_trainer):
    module = make_module(built=False, backbone=Small, regularizers=terms())
    module.configure_model()
    before = {name: value.clone() for name, value in module.regularizer_modules.named_parameters()}
    make_trainer(max_steps=2).fit(module, [make_batch("ab", number=0), make_batch("cd", number=1)])
    after = dict(module.regularizer_modules.named_parameters())
    assert before.keys() == after.keys() and not any(torch.equal(after[name], value) for name, value in before.items())


def test_initial_weights_of_the_model_do_not_depend_on_losses(make_module):
    weights = []
    for regularizers in ({}, terms()):
        module = make_module(built=False, backbone=Small, regularizers=regularizers)
        module.configure_model()
        weights.append(module.denoiser.before.weight)
    assert torch.equal(*weights)
