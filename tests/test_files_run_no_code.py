"""No module of vidlab has a way from the bytes of a file to code, but for those named here with their reason."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "vidlab"

TRUSTED = "lab/trusted_config.py"

# Calls that import by name or run what they are given, and who may make them.
MAKERS = {
    # of what the command line composed, or trusted_config let through
    "hydra.utils.instantiate": {"lab/cli/hydra_main.py"},
    "get_class": {"lab/compose.py"},
    "importlib.import_module": {
        "lab/cli/hydra_main.py",
        "__init__.py",
        "lab/cli/programs.py",
        "lab/cli/lean_imports.py",
    },  # all but the first: names in the code
    "eval": set(),
    "exec": set(),
    "__import__": set(),
    "os.system": set(),
    "os.popen": set(),
    "pickle.load": set(),
    "pickle.loads": set(),
    "marshal.loads": set(),
    "joblib.load": set(),
    "np.load": set(),
    "numpy.load": set(),
    "np.lib.format.read_array": set(),
    "pd.read_pickle": set(),
    "torch.jit.load": set(),
    "torch.hub.load": set(),
    "yaml.load": set(),
    "yaml.unsafe_load": set(),
    "yaml.full_load": set(),
    # shipped manifests and choices
    "OmegaConf.load": {"assets.py", "lab/claims/sources.py", "lab/compose.py", "lab/image_models/provide.py"},
    "OmegaConf.resolve": set(),
}
# The text of a configuration that is no file's: this run's own, and what a process sends the workers it starts.
OWN_TEXT = {(TRUSTED, "stored_settings"), (TRUSTED, "trusted_config"),
            ("lab/curate.py", "build_bench"), ("lab/runs/config_record.py", "resolved_yaml"),
            ("lab/published_sizes.py", "_as_config")}  # fmt: skip
FLAGS = {"weights_only": True, "trust_remote_code": False, "allow_pickle": False, "use_safetensors": True}


@cache
def trees() -> dict[str, ast.Module]:
    """The modules of vidlab by their paths; read when the first test asks, not by every process that collects them."""
    return {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}


@cache
def calls() -> list[tuple[str, str, str, ast.Call]]:
    """(file, function around, dotted name, call) of every call."""
    return list(_calls())


def _calls() -> Iterator[tuple[str, str, str, ast.Call]]:
    for file, tree in trees().items():
        unseen: list[tuple[ast.AST, str]] = [(tree, "")]
        while unseen:
            node, function = unseen.pop()
            if isinstance(node, ast.Call):
                yield file, function, _dotted(node.func), node
            if isinstance(node, ast.FunctionDef):
                function = node.name
            unseen += [(inner, function) for inner in ast.iter_child_nodes(node)]


def _dotted(called: ast.expr) -> str:
    """``a.b.c``; of what is computed, such as ``f(x).c``, only what follows it: ``?.c``."""
    parts = []
    while isinstance(called, ast.Attribute):
        parts.append(called.attr)
        called = called.value
    return ".".join([called.id if isinstance(called, ast.Name) else "?", *reversed(parts)])


@pytest.mark.parametrize("name", MAKERS)
def test_what_makes_objects_is_called_where_it_is_known(name):
    assert {file for file, _, called, _ in calls() if called == name} == MAKERS[name]


def _is_config(arguments: list[ast.expr]) -> bool:
    return bool(arguments) and isinstance(arguments[0], ast.Constant) and arguments[0].value == "config"


def test_configurations_of_checkpoints_go_through_one_module():
    """Whoever takes ``state["config"]`` hands it on at once; whoever reads YAML reads its own."""
    handed = {
        id(argument)
        for _, _, name, call in calls()
        if name in ("stored_settings", "trusted_config")
        for argument in call.args
    }
    taken = [
        (file, node)
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load)
        if isinstance(node.slice, ast.Constant) and node.slice.value == "config"
    ]
    assert [file for file, node in taken if id(node) not in handed] == []
    assert {file for file, _ in taken} == {TRUSTED, "lab/init.py", "lab/runs/resume_check.py", "lab/export.py"}
    got = [file for file, _, name, call in calls() if name.endswith(".get") and _is_config(call.args)]
    assert got == []
    parsed = {
        (file, function)
        for file, function, name, call in calls()
        if name == "OmegaConf.create" and not isinstance(call.args[0], ast.Dict)
    }
    assert parsed == OWN_TEXT


def test_libraries_are_told_to_run_nothing():
    loads = [call for _, _, name, call in calls() if name == "torch.load"]
    assert len(loads) >= 2 and all("weights_only" in {word.arg for word in call.keywords} for call in loads)
    for file, _, name, call in calls():
        flags = {word.arg: word.value for word in call.keywords if word.arg in FLAGS and "save" not in name}
        for flag, value in flags.items():
            constant = isinstance(value, ast.Constant) and value.value is FLAGS[flag]
            assert constant, f"{file}: {name}({flag}={ast.unparse(value)})"
        assert not [word for word in call.keywords if word.arg == "shell"], f"{file}: {name}"
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value in FLAGS:
                        assert ast.literal_eval(value) is FLAGS[key.value], file
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                assert name != "add_safe_globals", file
                assert name != "Unpickler" or file == "perceptual/unpickle.py", file


def test_models_of_other_libraries_are_looked_at_first():
    """Every function that has a library build a model of a folder refuses folders that ask for code."""
    building = {(file, function) for file, function, name, _ in calls() if name.endswith(".from_pretrained")}
    checked = {(file, function) for file, function, name, _ in calls() if name == "refuse_code"}
    assert building <= checked and len(building) == 8
