"""``model.scale``: one dial for width, depth, heads and the learning rate."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from vidlab.errors import UserError
from vidlab.lab.compose import build_module
from vidlab.lab.runs import run_folder  # noqa: F401  registers the resolvers
from vidlab.lab.scaling.model_scale import check_scale, scaled, scaled_lr, scaled_width

CONF = Path(__file__).parents[3] / "conf"
MODELS = (
    "2p1d", "full3d", "skiparse", "skip_window", "stiv", "open_sora_plan", "mmdim", "harivo", "harivo_image",
)  # fmt: skip
# (width, depth, heads) at scale 1, as they were before there was a dial
SIZES = {"mmdim": (192, 2, 3), "harivo": (32, 1, 4), "harivo_image": (32, 1, 4), "open_sora_plan": (192, 4, 4)}


def composed(*words: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(words))


def sizes(cfg: DictConfig) -> tuple[int, ...]:
    return tuple(cfg.model.backbone[name] for name in ("width", "depth", "heads"))


def test_the_rule() -> None:
    assert [scaled(3, scale) for scale in (0.1, 0.5, 1, 1.5, 2)] == [1, 2, 3, 5, 6]
    assert [scaled_width(192, 3, scale) for scale in (0.1, 0.5, 1, 2)] == [64, 128, 192, 384]
    assert scaled_lr(3e-3, 1, 2) == 1.5e-3 and scaled_lr(4e-3, 0.5, 4) == 2e-3
    assert scaled_lr(3e-3, 0.5, 1) == 3e-3 == scaled_lr(3e-3, 0.5, None)


@pytest.mark.parametrize("model", MODELS)
def test_scale_one_is_the_model_as_it_was(model: str) -> None:
    assert sizes(composed(f"model={model}")) == SIZES.get(model, (192, 4, 3))


@pytest.mark.parametrize(("optimizer", "rates"), [
    ("muon", (3e-3 * 2**0.5, 3e-3, 3e-3 / 2**0.5)), ("adamw", (6e-3, 3e-3, 1.5e-3)),
    ("adafactor", (1e-2 * 2**0.5, 1e-2, 1e-2 / 2**0.5)),
])  # fmt: skip
def test_the_learning_rate_follows(optimizer: str, rates: tuple[float, ...]) -> None:
    found = [composed(f"optimizer={optimizer}", f"model.scale={scale}").optimizer.lr for scale in (0.5, 1, 2)]
    assert found == pytest.approx(rates, rel=1e-12) and found[1] == rates[1]


def test_what_is_set_wins() -> None:
    cfg = composed("model.scale=2", "model.backbone.width=120", "optimizer.lr=0.1")
    assert sizes(cfg) == (120, 8, 6) and cfg.optimizer.lr == 0.1


def test_tasks_without_a_model_have_no_dial() -> None:
    assert composed("task=autoencoder").optimizer.lr == 3e-3


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_built_at_three_sizes(model: str) -> None:
    counts = []
    for scale in (0.5, 1, 2):
        module = build_module(composed(f"model={model}", f"model.scale={scale}"))
        with torch.device("meta"):
            module.configure_model()
        counts.append(sum(p.numel() for p in module.denoiser.parameters()))
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("scale", ["0", "-1", "large", "true", "inf"])
def test_a_scale_that_is_none(scale: str) -> None:
    with pytest.raises(UserError, match=r"model\.scale=.*must be a positive number"):
        check_scale(composed(f"model.scale={scale}"))


@pytest.mark.parametrize("words", [
    ("model=paper/stiv_m",), ("model.backbone.width=64", "model.backbone.depth=1", "model.backbone.heads=1"),
])  # fmt: skip
def test_a_dial_of_the_learning_rate_alone_is_refused(words: tuple[str, ...]) -> None:
    check_scale(composed(*words))
    with pytest.raises(UserError, match="nothing but the learning rate"):
        check_scale(composed(*words, "model.scale=2"))


def test_a_plan_of_layers_may_leave_out_what_has_a_default() -> None:
    """As a model of one's own may: ``LayerPlan`` knows how many layers attend to everything where nothing is said."""
    for scale in ("1", "2"):
        cfg = composed(
            "~model.backbone.layouts.full_first", "~model.backbone.layouts.full_last", f"model.scale={scale}"
        )
        check_scale(cfg)


@pytest.mark.parametrize("model", ["skiparse", "open_sora_plan"])
def test_a_dial_that_leaves_no_sparse_layer_is_refused(model: str) -> None:
    for scale in ("0.75", "1", "2"):
        check_scale(composed(f"model={model}", f"model.scale={scale}"))
    with pytest.raises(UserError, match=r"2 layers then, .* it would be full 3D attention"):
        check_scale(composed(f"model={model}", "model.scale=0.5"))
    check_scale(composed(f"model={model}", "model.scale=0.5", "model.backbone.layouts.full_last=0"))
