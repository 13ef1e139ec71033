"""Whether a backbone can read what an objective gives it, asked before anything is trained."""

from collections.abc import Sequence

from vidlab.backbones.base import BackboneSpec
from vidlab.clip import LatentShape
from vidlab.diffusion.objective import InputShape
from vidlab.errors import UserError


def check_inputs(
    shapes: Sequence[InputShape], latent: LatentShape, control_channels: int, backbone: BackboneSpec
) -> None:
    """Refuse a conditioning and a backbone for whole clips where an objective gives parts of them, with a history.

    Args:
        shapes: what the objective gives.
        latent: the latents of a clip.
        control_channels: channels of the controls.
        backbone: what it declares.

    Raises:
        UserError: naming the settings.
    """
    given = sorted({part for shape in shapes for part in (shape.latent, *shape.history)}, key=repr)
    if given == [latent]:
        return
    if backbone.reads_structure:
        raise UserError(
            "The chosen objective gives the model parts of a clip, and conditioning=structure adds signals of a whole "
            "clip. Use another objective, such as objective=flow_matching."
        )
    if control_channels:
        raise UserError(
            "The chosen objective gives the model parts of a clip, and the chosen conditioning adds channels of a "
            "whole clip. Use conditioning=frame_replacement: frames that are given are what the others follow."
        )
    if any(shape.history for shape in shapes) and not backbone.reads_history:
        raise UserError(
            "The chosen objective tells the model the frames before the current one, and the chosen model, as it is "
            "configured, reads no history. Use model=full3d or model=mmdim, or another objective."
        )
    for part in given:
        _check_patch(part, backbone.patch)


def check_structure(told: bool, backbone: BackboneSpec) -> None:
    """Refuse signals of structure that nothing reads.

    Args:
        told: whether the conditioning gives some.
        backbone: what the denoiser declares.

    Raises:
        ValueError: the denoiser reads none.
    """
    if told and not backbone.reads_structure:
        raise ValueError("the conditioning tells structure: make the denoiser with conditioning.made_to_read")


def _check_patch(part: LatentShape, patch: tuple[int, int, int]) -> None:
    advice = {
        "frames": "Use tokens of one latent frame, such as model.token=[1,4,4] with autoencoder=haar_frames.",
        "height": "Use a smaller model.token, fewer objective.stages or another data.height.",
        "width": "Use a smaller model.token, fewer objective.stages or another data.width.",
    }
    for (name, told), step in zip(advice.items(), patch, strict=True):
        size = getattr(part, name)
        if size % step:
            raise UserError(
                f"The chosen objective gives the model latents of {name} {size}, which its patch {list(patch)} of "
                f"(frames, rows, columns) does not divide. {told}"
            )
