"""What ``--help`` prints: the groups that a program uses, and its settings with the comments that explain them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf, open_dict

from vidlab.lab.cli.error_messages import choices_among

FLAGS, SWEEP = frozenset({"--help", "-h"}), frozenset({"-m", "--multirun"})
LINE = re.compile(r"(?P<indent> *)(?:- )?(?P<key>[\w.+-]+):(?=\s|$)(?P<rest>.*)")
COMMENT = re.compile(r"(?:^|\s)#\s?(?P<text>.*)$")
COLUMN = 44  # where comments begin, unless a setting is longer

HEAD = """{about}
Groups, each a choice of files (group=choice):

{groups}

Settings (key=value), as these arguments leave them; + adds a key, -m sweeps over values with commas between them:

{settings}
Also: --cfg job prints the settings alone, --hydra-help what Hydra itself offers."""


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether this help is wanted; with further flags, such as ``--config-dir``, it is Hydra's own."""
    flags = {argument for argument in arguments if argument.startswith("-")}
    return bool(flags & FLAGS) and flags <= FLAGS | SWEEP


def help_text(conf: Path, program: str, overrides: Sequence[str] = ()) -> str:
    """The help of a program.

    Args:
        conf: the folder of configurations.
        program: the name of its primary one, such as ``train``.
        overrides: what was typed beside ``--help``; it decides what is shown.

    Raises:
        HydraException: they do not compose.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        cfg = compose(program, list(overrides), return_hydra_config=True)
        # once: the loader's own get_group_options reads the program again for each group
        _, files = (
            GlobalHydra.instance().config_loader()._parse_overrides_and_create_caching_repo(program, list(overrides))
        )
        choices = {str(key): choice for key, choice in cfg.hydra.runtime.choices.items()}
        comments = _comments_of(conf, program, choices)
        used = _groups(conf, program) | {key.partition("@")[0] for key in choices if not key.startswith("hydra")}

        def listed(group: str) -> Iterator[str]:
            options = choices_among(files.get_group_options(group, ObjectType.CONFIG))
            if options:
                told = comments.get(f"defaults.{group}")
                yield f"  {group + ':':<18} {', '.join(sorted(options))}{f'  # {told}' if told else ''}"
            for inner in sorted(files.get_group_options(group, ObjectType.GROUP)):
                yield from listed(f"{group}/{inner}")

        groups = "\n".join(line for group in sorted(used) for line in listed(group))
    with open_dict(cfg):
        del cfg["hydra"]
    about = "".join(f"{line}\n" for line in comments.pop("", "").splitlines())
    return HEAD.format(program=program, about=about, groups=groups, settings=_annotated(cfg, comments))


def _groups(conf: Path, name: str) -> set[str]:
    """The groups in the defaults of a primary configuration, with those of what it begins from."""
    found: set[str] = set()
    for entry in _defaults(conf / f"{name}.yaml"):
        if isinstance(entry, Mapping):
            found |= {str(group).partition("@")[0] for group in entry if " " not in str(group)}
        elif entry != "_self_":
            found |= _groups(conf, entry)
    return {group for group in found if not group.startswith("hydra")}


def _defaults(file: Path) -> list[Any]:
    content = yaml.safe_load(file.read_text("utf-8")) if file.is_file() else None
    return list(content.get("defaults") or []) if isinstance(content, dict) else []


def _comments_of(conf: Path, program: str, choices: Mapping[str, Any]) -> dict[str, str]:
    """Comments by full key: those of the chosen files, then of the primary one, which explains its own keys."""
    found: dict[str, str] = {}
    for key, choice in choices.items():
        group, _, package = key.partition("@")
        names = choice if isinstance(choice, list | tuple) else [choice]
        for name in names:
            if name and not key.startswith("hydra"):
                found |= _comments_in(conf / group, str(name), package or group.replace("/", "."))
    callbacks = [entry["callbacks"] for entry in _defaults(conf / f"{program}.yaml") if "callbacks" in entry]
    for name in callbacks[0] if callbacks and isinstance(callbacks[0], list) else ():
        found |= _comments_in(conf / "callbacks", name, "callbacks")
    return found | _comments_in(conf, program, "")


def _comments_in(folder: Path, name: str, package: str) -> dict[str, str]:
    """Comments of a file and of those it begins from, by full key; what stands at its top under its package."""
    file = folder / f"{name}.yaml"
    if not file.is_file():  # from hydra.searchpath, or a package
        return {}
    text = file.read_text("utf-8")
    found: dict[str, str] = {}
    for entry in _defaults(file):
        if isinstance(entry, str) and entry != "_self_" and not entry.startswith("/"):
            found |= _comments_in(folder, entry, package)
    package = "" if "@package _global_" in text else package
    top = [line.lstrip("# ") for line in _until_settings(text) if "@package" not in line]
    if top:
        found[package] = "\n".join(top)
    return found | dict(_comments(text.splitlines(), package))


def _until_settings(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line


def _comments(lines: Sequence[str], package: str) -> Iterator[tuple[str, str]]:
    """(full key, comment) of every key with one behind it, which may go on below."""
    known = iter(_keys(lines))
    full, told = "", ""
    for line in lines:
        if LINE.fullmatch(line):
            key, rest = next(known)
            comment = COMMENT.search(rest)
            full, told = ".".join(filter(None, (package, key))), comment["text"] if comment else ""
        elif told and line.lstrip().startswith("#") and line.index("#") > len(full):
            told += " " + line.lstrip("# ")
        else:
            full, told = "", ""
        if told:
            yield full, told


def _keys(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(full key, what stands behind it) of every key of a mapping."""
    above: list[tuple[int, str]] = []
    for line in lines:
        found = LINE.fullmatch(line)
        if found is None:
            continue
        indent = len(found["indent"])
        above = [(depth, name) for depth, name in above if depth < indent] + [(indent, found["key"])]
        yield ".".join(name for _, name in above), found["rest"]


def _annotated(cfg: DictConfig, comments: Mapping[str, str]) -> str:
    """The settings as YAML, each line with its comment."""
    lines = OmegaConf.to_yaml(cfg).splitlines()
    keys = iter(_keys(lines))
    told = []
    for line in lines:
        key = next(keys)[0] if LINE.fullmatch(line) else ""
        comment = comments.get(key) if key and not line.lstrip().startswith("- ") else None
        if (comment and "\n" in comment) or (comment and "." not in key and line.endswith(":")):
            told += [*(f"# {part}" for part in comment.splitlines()), line]
        else:
            told.append(f"{line:<{COLUMN}} # {comment}" if comment else line)
    return "\n".join(told) + "\n"
