"""What an objective gives a backbone that cannot read it is refused, with what to do."""

import pytest

from vidlab.backbones.base import BackboneSpec
from vidlab.clip import LatentShape
from vidlab.diffusion.objective import InputShape
from vidlab.errors import UserError
from vidlab.training.input_checks import check_inputs

CLIP = LatentShape(3, 8, 8, 8)
FRAME = LatentShape(3, 1, 8, 8)
LATER = (InputShape(FRAME, (FRAME,)),)


def test_whole_clips_go_with_everything():
    check_inputs((InputShape(CLIP),), CLIP, 5, BackboneSpec(patch=(4, 3, 3)))


def test_parts_of_clips_with_a_history():
    check_inputs(LATER, CLIP, 0, BackboneSpec(patch=(1, 2, 2), reads_history=True))


@pytest.mark.parametrize(
    ("channels", "spec", "message"),
    [
        (5, BackboneSpec(reads_history=True), "adds channels of a whole clip"),
        (0, BackboneSpec(), "reads no history"),
        (0, BackboneSpec(patch=(4, 1, 1), reads_history=True), r"latents of frames 1.*model\.token=\[1,4,4\]"),
        (0, BackboneSpec(patch=(1, 1, 16), reads_history=True), r"latents of width 8.*fewer objective\.stages"),
    ],
)
def test_what_cannot_be_read_is_refused(channels, spec, message):
    with pytest.raises(UserError, match=message):
        check_inputs(LATER, CLIP, channels, spec)
