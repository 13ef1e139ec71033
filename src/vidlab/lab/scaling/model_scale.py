"""``model.scale``: one dial that sets width, depth, heads and the learning rate of a model by a rule.

Depth and heads are their values at scale 1 times s, rounded, at least 1; width is heads times the size of a head, which
stays. Width, depth and heads thus keep their proportions, as in sweeps over compute (Kaplan et al. 2020, section 3.1:
over a wide range of shapes the loss depends on size alone), and parameters grow with s^3. The learning rate is its
value at scale 1 times s^-e, where e is the optimizer's own:

- AdamW, e = 1: an update of an Adam optimizer has elements of a fixed size, and what it changes in the output of a
  matrix grows with the width (Yang et al. 2022, "Tensor Programs V", table 3, hidden weights).
- Muon, e = 1/2: its updates U V^T are scaled here by 0.2 sqrt(max(rows, columns)) to elements of a fixed size; their
  spectral norm then grows with the root of the width, and should not (Yang, Simon & Bernstein 2023, condition 1).
- Adafactor, e = 1/2: its steps are relative to the root mean square of a weight, which falls as 1 / sqrt(width).

A value that is set itself (``model.backbone.width=...``, ``optimizer.lr=...``) wins.
"""

from omegaconf import DictConfig, OmegaConf

from vidlab.errors import UserError

SIZES = ("width", "depth", "heads")


def scaled(number: int, scale: object) -> int:
    """A number of blocks or heads at a scale: the nearest whole number, half upwards, at least 1.

    Raises:
        UserError: a scale that is no positive number.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise UserError(f"model.scale={scale}: it must be a positive number; 1 is the model as it is.")
    return max(int(number * scale + 0.5), 1)


def scaled_width(width: int, heads: int, scale: object) -> int:
    """The width at a scale, of heads that keep their size.

    Args:
        width, heads: at scale 1.
        scale: s.
    """
    return width // heads * scaled(heads, scale)


def scaled_lr(lr: float, exponent: float, scale: float | None) -> float:
    """The learning rate ``lr`` s^-``exponent``; as it is where a task has no dial."""
    return lr if scale is None or scale == 1 else lr * scale**-exponent


def check_scale(cfg: DictConfig) -> None:
    """Refuse a dial that would turn the learning rate alone, or leave another model than the one asked for.

    Raises:
        UserError: the scale is not 1, and the sizes of the model are given as numbers, or so few layers are left that
            its token layouts have no part in it.
    """
    model = cfg.get("model")
    if not model or "scale" not in model:
        return
    scaled(1, model.scale)
    if model.scale == 1:
        return
    if not any(OmegaConf.is_interpolation(model.backbone, name) for name in SIZES):
        raise UserError(
            f"model.scale={model.scale}: width, depth and heads of model={model.name} are given as numbers, so that "
            "the dial would set nothing but the learning rate. Leave model.scale out, or those numbers."
        )
    layouts = model.backbone.get("layouts")
    first, last = (layouts.get(name, 0) for name in ("full_first", "full_last")) if layouts else (0, 0)
    if first + last > 0 and model.backbone.depth <= first + last:
        raise UserError(
            f"model.scale={model.scale}: model={model.name} has {model.backbone.depth} layers then, and its first "
            f"{first} and last {last} attend to everything: it would be full 3D attention. "
            "Take a larger scale, or fewer of these (model.backbone.layouts.full_first and full_last)."
        )


OmegaConf.register_new_resolver("scaled", scaled, replace=True)
OmegaConf.register_new_resolver("scaled_width", scaled_width, replace=True)
OmegaConf.register_new_resolver("scaled_lr", scaled_lr, replace=True)
