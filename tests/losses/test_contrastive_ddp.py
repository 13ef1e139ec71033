"""The queue of the contrastive loss in several processes."""

import socket
from pathlib import Path

import torch
from torch import distributed

from processes import run_ranks
from vidlab.features import H_SPACE
from vidlab.losses.contrastive import DecoupledContrastive, video_numbers

KEYS = ("ab", "cd")


def vectors(rank: int) -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(rank))


def work(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    term = DecoupledContrastive(queue=10)
    term.fit_features({H_SPACE: (3, 4, 1, 1)})
    term.enqueue(vectors(rank), video_numbers(KEYS[rank] * 2, torch.device("cpu")))
    torch.save({name: getattr(term, name) for name in ("vectors", "videos", "next_place")}, folder / str(rank))
    distributed.destroy_process_group()


def test_every_process_holds_the_vectors_of_all(commands, tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    run_ranks(commands, tmp_path, work, (port, tmp_path))
    one, two = (torch.load(tmp_path / str(rank), weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    torch.testing.assert_close(one["vectors"][:8], torch.cat([vectors(0), vectors(1)]))
    assert torch.equal(one["videos"][:8], video_numbers("ababcdcd", torch.device("cpu")))
    assert one["next_place"] == 8 and (one["videos"][8:] == -1).all()
