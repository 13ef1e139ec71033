"""The pages of docs/: all are in the navigation, links lead somewhere, commands compose and names exist.

``tox -e docs`` builds the pages; this needs no mkdocs.
"""

import itertools
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from vidlab.lab.cli.arguments import quote_text
from vidlab.lab.cli.programs import PROGRAMS
from vidlab.lab.runs import run_folder  # noqa: F401  registers its resolver

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
COMPOSED = ("train", "generate", "evaluate", "curate")
FLAGS = ("-m", "--multirun", "--help", "--cfg", "job")


def text_of(page: str) -> str:
    return (DOCS / page).read_text()


def commands() -> list[tuple[str, str]]:
    """Every line of the plain bash blocks, with its page; those with a title are of a package that is not here."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```$", text_of(page), flags=re.MULTILINE | re.DOTALL):
            found += [(page, line) for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return found


def jobs(command: str) -> Iterator[tuple[str, list[str]]]:
    """The configuration that a command composes, and the overrides of each job of it."""
    _, program, *words = shlex.split(command)
    name = program.removesuffix(".py")
    sweep = "-m" in words
    given = [quote_text(word, PROGRAMS[name].text_keys, sweep) for word in words if word not in FLAGS]
    parsed = OverridesParser.create().parse_overrides(given)
    choices = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [one.input_line]
        for one in parsed
    ]
    assert sweep or all(len(values) == 1 for values in choices), "a sweep needs -m"
    for overrides in itertools.product(*choices):
        yield name, list(overrides)


def is_composed(command: str) -> bool:
    return re.match(rf"python ({'|'.join(COMPOSED)})\.py\b", command) is not None


def entries(nav: Any) -> Iterator[str]:
    """The pages of a navigation, however deep."""
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from entries(item)


def test_every_page_is_in_the_navigation_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(entries(nav)) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (DOCS / page).parent / path if path else DOCS / page
        assert target.is_file() and target.resolve().is_relative_to(DOCS), link
        assert not anchor or anchor in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    """Of headings, as mkdocs makes them."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize(("page", "command"), [pair for pair in commands() if is_composed(pair[1])])
def test_commands_compose(page: str, command: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for name, overrides in jobs(command):
            assert compose(name, overrides)


def test_other_commands_exist() -> None:
    exports = r"lab\.export last (exported|adapter --motion-adapter)"
    stages = r"lab\.stages experiments/(m4v|stiv|open_sora_plan|harivo)/stages_laptop\.yaml"
    allowed = rf"pip install -r requirements\.txt|mlflow ui .*|python -m vidlab\.({exports}|{stages}|assets)"
    for page, command in commands():
        if is_composed(command) or re.fullmatch(allowed, command):
            continue
        if script := re.match(r"python (benchmarks/\w+\.py)\b", command):
            assert (ROOT / script[1]).is_file(), f"{page}: {command}"
            continue
        program = re.match(r"python -m vidlab (\w+)\b", command)
        assert program and program[1] in PROGRAMS, f"{page}: {command}"


def test_a_command_that_does_not_compose_is_found() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for wrong in ("model=unheard_of", "data.unheard_of=1"):
            ((name, overrides),) = jobs(f"python train.py {wrong}")
            with pytest.raises(HydraException):
                compose(name, overrides)
    assert len(list(jobs("python train.py -m model=2p1d,full3d seed=0,1,2"))) == 6


@cache
def source(module: Path) -> str:
    return module.read_text() if module.is_file() else ""


def exists(name: str) -> bool:
    """Whether a dotted name is a module below src/, or defined at the top of one."""
    path, parts = ROOT / "src", name.split(".")
    for place, part in enumerate(parts):
        path = path / part
        if path.is_dir():
            continue
        module, rest = path.with_suffix(".py"), parts[place + 1 :]
        if not module.is_file():  # a name in a package itself
            module, rest = path.parent / "__init__.py", parts[place:]
        return (
            not rest or re.search(rf"^(class|def) {rest[0]}\b|\"{rest[0]}\"", source(module), re.MULTILINE) is not None
        )
    return True


@pytest.mark.parametrize("page", PAGES)
def test_names_of_modules_and_classes_exist(page: str) -> None:
    named = re.findall(r"(?:`|^::: )(vidlab(?:\.\w+)+)", text_of(page), flags=re.MULTILINE)
    assert [name for name in named if name != "vidlab.json" and not exists(name)] == []


def test_a_name_that_does_not_exist_is_found() -> None:
    assert all(map(exists, ("vidlab.load", "vidlab.sampling", "vidlab.clip.Conditions", "vidlab.lab.loading.load")))
    assert not any(map(exists, ("vidlab.unheard_of", "vidlab.clip.Unheard", "vidlab.sampling.unheard_of")))
