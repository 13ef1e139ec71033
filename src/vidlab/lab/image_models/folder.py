"""An image model as a folder: the UNet in diffusers' form, and the text encoder that was trained with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlab.backbones.harivo.image import ImageUNet
from vidlab.backbones.harivo.image_model import WEIGHTS
from vidlab.errors import UserError
from vidlab.files import folder_made_aside, write_json
from vidlab.hub import read_json
from vidlab.tensors import save_tensors
from vidlab.training.video_diffusion import VideoDiffusion

RECORD = "image_model.json"
TEXT, TRAINED = "text_encoder", "trained.safetensors"


@dataclass(frozen=True)
class ImageModelRecord:
    """What a folder says about the training of its model.

    Args:
        text_encoder: settings of the one that was trained with it; None where it is a frozen one.
        parameters: of the UNet.
        steps: that it was trained for.
        seconds: that they took; None where it was taken out of a run.
        training_flops: of all steps; None where it was taken out of a run.
        objective: settings of what it was trained for; None in a folder of an earlier version.
    """

    text_encoder: dict[str, Any] | None
    parameters: int
    steps: int
    seconds: float | None = None
    training_flops: float | None = None
    objective: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> "ImageModelRecord | None":
        """The record of a folder; None where it has none, as one of Stable Diffusion.

        Raises:
            UserError: it is damaged.
        """
        if not (folder / RECORD).is_file():
            return None
        try:
            return cls(**read_json(folder / RECORD))
        except TypeError as error:
            raise UserError(f"{folder / RECORD} is damaged ({error}); delete the folder {folder}.") from None


def write_image_model(module: VideoDiffusion, folder: Path, record: ImageModelRecord) -> None:
    """Write the UNet and, where it was trained, the text encoder; the folder appears whole or not at all.

    Raises:
        UserError: the model is no image model.
    """
    if not isinstance(module.denoiser, ImageUNet):
        raise UserError(
            f"model.image_model: the run trained a {type(module.denoiser).__name__}, no image model. Give a run of "
            "model=harivo_image data.images=true."
        )
    with folder_made_aside(folder) as aside:
        module.denoiser.body.save_config(aside / "unet")
        save_tensors(module.denoiser.body.state_dict(), aside / "unet" / WEIGHTS[0])
        if module.text_encoder.trainable:
            (aside / TEXT).mkdir()
            save_tensors(module.text_encoder.state_dict(), aside / TEXT / TRAINED)
        write_json(aside / RECORD, record.__dict__)
