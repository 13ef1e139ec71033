"""What a person may type after a run: commands with its folder, for each kind of training module."""

from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path

from vidlab.command_line import command, prompt, setting
from vidlab.training.module import ClipModule
from vidlab.training.video_autoencoder import VideoAutoencoder
from vidlab.training.video_diffusion import VideoDiffusion


@dataclass(frozen=True)
class CliSelection:
    """How parts of a run are asked for on a command line.

    Args:
        data: settings as Hydra holds them, such as ``data=folder``, ``data.path=videos``.
        autoencoder: the choice and what was changed in it, such as ``autoencoder=wfvae_nano``,
            ``autoencoder.width=32``; no weights.
        allow: what admits the classes of the user's own, where there are some.
        prompt: a text of the kind that was trained on.
    """

    data: tuple[str, ...]
    autoencoder: tuple[str, ...]
    allow: tuple[str, ...] = ()
    prompt: str = "a red square moving right"


@singledispatch
def next_commands(module: ClipModule, folder: Path, named: CliSelection) -> list[str]:
    """What to do with a finished run, to be pasted; nothing is known of other kinds of modules.

    Args:
        module: what was trained.
        folder: of the run.
        named: how the run's parts were asked for.
    """
    return []


@next_commands.register
def _(module: VideoDiffusion, folder: Path, named: CliSelection) -> list[str]:
    return [
        command("generate.py", setting("checkpoint", folder), prompt(named.prompt), *named.allow),
        command("evaluate.py", setting("run", folder), *named.allow),
        command("train.py", "-m", "seed=0,1,2") + "      # a sweep: comma-separated values of any setting",
    ]


@next_commands.register
def _(module: VideoAutoencoder, folder: Path, named: CliSelection) -> list[str]:
    path = setting("autoencoder.path", folder)
    return [
        command("evaluate.py", setting("autoencoders", [folder, "haar", "trilinear"]), *named.data, *named.allow),
        command("train.py", "model=skiparse", *named.autoencoder, path, f"data.frames={module.clip_shape[0]}"),
    ]
