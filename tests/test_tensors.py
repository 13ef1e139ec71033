"""Tensors of files: verified, and of exactly the shapes that are expected."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vidlab.errors import UserError
from vidlab.tensors import (
    is_finite,
    read_tensors,
    refuse_non_finite,
    refuse_other_shapes,
    save_tensors,
    tensor_checksum,
)

TENSORS = {
    "w": torch.randn(40, 60, generator=torch.Generator().manual_seed(0)),
    "half": torch.arange(6.0).bfloat16().view(2, 3),
    "mask": torch.tensor([True, False]),
    "scalar": torch.tensor(3),
    "none": torch.zeros(0, 4),
}


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in expected.items()
    )


def test_what_is_saved_is_read_by_us_and_others(tmp_path):
    file = tmp_path / "w.safetensors"
    save_tensors(TENSORS, file)
    assert same(read_tensors(file, ""), TENSORS) and same(load_file(file), TENSORS)
    assert read_tensors(file, "", torch.float16)["w"].dtype == torch.float16
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    save_file(TENSORS, file)  # without checksums
    assert same(read_tensors(file, ""), TENSORS)


def test_damaged_files_are_refused_or_equal(tmp_path):
    """Bits, bytes, stretches of zeros and cuts, anywhere in the file."""
    file = tmp_path / "w.safetensors"
    save_tensors(TENSORS, file)
    good, draw = file.read_bytes(), random.Random(0)
    for number in range(150):
        bad, place = bytearray(good), draw.randrange(len(good) if number % 3 else 600)
        match number % 4:
            case 0 | 1:
                bad[place] ^= 1 << draw.randrange(8)
            case 2:
                bad[place : place + 64] = bytes(len(bad[place : place + 64]))
            case 3:
                del bad[place:]
        file.write_bytes(bad)
        try:
            assert same(read_tensors(file, ""), TENSORS), (number, place)
        except UserError as error:
            assert "it is damaged or no safetensors file" in str(error)


def test_a_damaged_name_of_the_checksums_does_not_turn_them_off(tmp_path):
    file = tmp_path / "w.safetensors"
    save_tensors(TENSORS, file)
    file.write_bytes(file.read_bytes().replace(b'"checksums"', b'"checkrums"'))
    with pytest.raises(UserError, match="its checksums are not there"):
        read_tensors(file, "")


def test_swapped_words_and_pages_are_found():
    value = torch.arange(4 * 4096, dtype=torch.float64)
    swapped = value.clone()
    swapped[:512], swapped[512:1024] = value[512:1024], value[:512]
    assert tensor_checksum("w", value) == tensor_checksum("w", value.clone())
    assert tensor_checksum("w", value) != tensor_checksum("w", swapped)
    others = [
        tensor_checksum("v", value),
        tensor_checksum("w", value.view(4, 4096)),
        tensor_checksum("w", value.flip(0)),
    ]
    others += [tensor_checksum("w", value.view(torch.int64)), tensor_checksum("w", swapped)]
    assert len({tensor_checksum("w", value), *others}) == 6


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"])
def test_other_files_are_refused(tmp_path: Path, content):
    file = tmp_path / "w.safetensors"
    file.write_bytes(content)
    if content.endswith(b"\0{}"):
        assert read_tensors(file, "") == {}
        return
    with pytest.raises(UserError, match=r"w.safetensors cannot be read, it is damaged .*Fetch it again\."):
        read_tensors(file, "Fetch it again.")
    header = json.dumps({"__metadata__": {"checksums": "3"}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="not those that were written"):
        read_tensors(file, "")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"w": torch.zeros(1)}, r"w has shape \(1,\) and type torch.float32, the model's has \(2, 3\)"),
        ({"w": torch.zeros(2, 3, dtype=torch.int64)}, "torch.int64"),
        ({"w": torch.zeros(2, 3, dtype=torch.complex64)}, "torch.complex64"),
        ({"w": [1.0]}, "w is of the type list, not a tensor"),
        ({"v": torch.zeros(2, 3)}, r"v \(2, 3\) is no tensor of this model"),
    ],
)
def test_other_shapes_are_refused(found, message):
    with pytest.raises(UserError, match=f"here: .*{message}.*Mend it"):
        refuse_other_shapes(found, {"w": torch.zeros(2, 3), "u": torch.zeros(1)}, "here", "Mend it.")
    refuse_other_shapes({"w": torch.ones(2, 3).half()}, {"w": torch.zeros(2, 3)}, "here", "")


def test_numbers_that_are_not_finite_are_named():
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e5m2):
        for bad in (float("nan"), float("inf"), -float("inf")):
            tensor = torch.tensor([[0.0, bad], [1.0, 2.0]]).to(dtype)
            assert not is_finite(tensor) and is_finite(tensor[1])
    assert is_finite(torch.tensor([1, 2])) and is_finite(torch.zeros(0))
    with pytest.raises(UserError, match=r"here: b \(2,\) holds numbers that are not finite. Mend it."):
        refuse_non_finite({"a": torch.ones(1), "b": torch.tensor([1.0, float("nan")])}, "here", "Mend it.")


def test_a_file_of_tensors_has_the_mode_of_any_new_file(tmp_path):
    save_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode
