import pytest
import torch

from vidlab.errors import UserError
from vidlab.sampling.long_video import continued, interpolated


class Maker:
    """Makes clips whose unknown frames count on from the last known one; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], int]] = []

    def __call__(self, pixels, known, number):
        self.asked.append((known[0].int().tolist(), number))
        clip = pixels.clone()
        last = 0.0
        for frame in range(pixels.shape[2]):
            if known[0, frame]:
                last = float(pixels[0, 0, frame, 0, 0])
            else:
                last += 1
                clip[:, :, frame] = last
        return clip


def frames(video):
    return video[0, 0, :, 0, 0].tolist()


def test_a_video_is_continued_from_its_end():
    make = Maker()
    start = torch.zeros(1, 3, 4, 2, 2)
    start[:, :, 0] = 10
    video = continued(make, start, torch.tensor([[True, False, False, False]]), segments=3, overlap=1)
    assert frames(video) == list(range(10, 20))  # 4 + 2 * (4 - 1)
    assert make.asked == [([1, 0, 0, 0], 0), ([1, 0, 0, 0], 1), ([1, 0, 0, 0], 2)]
    longer = continued(Maker(), start, torch.tensor([[True, False, False, False]]), segments=2, overlap=3)
    assert frames(longer) == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("overlap", [0, 4])
def test_an_overlap_leaves_something_known_and_something_new(overlap):
    with pytest.raises(UserError, match=f"overlap={overlap}"):
        continued(Maker(), torch.zeros(1, 3, 4, 2, 2), torch.zeros(1, 4, dtype=torch.bool), 2, overlap)


def test_gaps_between_key_frames_are_filled():
    make = Maker()
    keys = torch.tensor([0.0, 10.0, 20.0, 30.0]).view(1, 1, 4, 1, 1).expand(1, 3, 4, 2, 2)
    video = interpolated(make, keys)
    assert frames(video) == [0, 1, 2, 10, 11, 12, 20, 21, 22, 30]  # (4 - 1) * (4 - 1) + 1
    assert make.asked == [([1, 0, 0, 1], 0), ([1, 0, 0, 1], 1), ([1, 0, 0, 1], 2)]
