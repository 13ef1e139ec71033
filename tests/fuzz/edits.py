"""Damage: small changes of a file's bytes or of what they mean, each decided by a random generator of its own."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from .structure import STRUCTURES

Edit = Callable[[Random, bytes], tuple[bytes, str]]

NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 4096, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)
TEXTS = (
    *("", " ", "\0", "\ud800", "\x1b[31mred\x1b[0m", "=1+1", "../../../outside", "/absolute", "~", "*", "a" * 70_000),
    *(
        "${oc.env:HOME}",
        "${now:}",
        "${.}",
        "{",
        "'",
        '"',
        "\\",
        "\u2028x",
        "\x85",
        "\f",
        "\ufeff",
        "e\u0301",
        "漢字",
        "nan",
    ),
    *(
        "-1",
        "1e999",
        "9" * 5000,
        "0x10",
        "1_000",
        "true",
        "null",
        "None",
        "[]",
        "{}",
        "con",
        "a\nb",
        "a\rb",
        "a\tb",
        "%s",
    ),
)


def _deep(levels: int) -> Any:
    nest: Any = []
    for _ in range(levels):
        nest = [nest]
    return nest


def hostile(random: Random) -> Any:
    """A value that nobody expects."""
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: None, lambda: random.random() < 0.5, lambda: random.choice(NUMBERS), lambda: float("nan"),
        lambda: float("inf"), lambda: 1e308, lambda: 10**400, lambda: random.choice(TEXTS),
        lambda: random.choice(TEXTS),
        lambda: [], dict, lambda: [None], lambda: {"a": 1}, lambda: _deep(50), lambda: [random.choice(TEXTS)] * 3,
        lambda: list(range(1000)), lambda: {random.choice(TEXTS): random.choice(NUMBERS)},
    )  # fmt: skip
    return random.choice(kinds)()


def flip(random: Random, data: bytes) -> tuple[bytes, str]:
    """One bit."""
    place, bit = random.randrange(len(data)), random.randrange(8)
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :], f"bit {bit} of byte {place}"


def overwrite(random: Random, data: bytes) -> tuple[bytes, str]:
    """A run of bytes by zeros, ones or noise."""
    place, size = random.randrange(len(data)), random.choice((1, 2, 4, 16, 64, 512))
    what = random.choice(("zeros", "ones", "noise"))
    new = {"zeros": bytes(size), "ones": b"\xff" * size, "noise": random.randbytes(size)}[what]
    return (data[:place] + new + data[place + size :])[: len(data)], f"{size} bytes of {what} at {place}"


def number(random: Random, data: bytes) -> tuple[bytes, str]:
    """A number of 1, 2, 4 or 8 bytes, anywhere."""
    size, order = random.choice((1, 2, 4, 8)), random.choice(("big", "little"))
    value, place = random.choice(NUMBERS) % (1 << 8 * size), random.randrange(len(data))
    new = value.to_bytes(size, "big" if order == "big" else "little")
    return (data[:place] + new + data[place + size :])[: len(data)], f"{order}-endian {value} at {place}"


def cut(random: Random, data: bytes) -> tuple[bytes, str]:
    """The end."""
    size = random.choice((random.randrange(len(data)), len(data) - random.randint(1, min(64, len(data)))))
    return data[:size], f"cut off at {size} of {len(data)}"


def remove(random: Random, data: bytes) -> tuple[bytes, str]:
    """A stretch."""
    place = random.randrange(len(data))
    size = random.choice((1, 3, 16, 200, 512, len(data) // 3))
    return data[:place] + data[place + size :], f"bytes {place} to {place + size} removed"


def repeat(random: Random, data: bytes) -> tuple[bytes, str]:
    """A stretch, there twice."""
    place, size = random.randrange(len(data)), random.choice((1, 7, 64, 512, 4096))
    return data[: place + size] + data[place : place + size] + data[place + size :], f"bytes {place} + {size} twice"


def splice(random: Random, data: bytes) -> tuple[bytes, str]:
    """A stretch, copied over another place."""
    size = random.choice((4, 16, 100, 512))
    source, place = random.randrange(len(data)), random.randrange(len(data))
    new = data[:place] + data[source : source + size] + data[place + size :]
    return new, f"{size} bytes of {source} copied to {place}"


def append(random: Random, data: bytes) -> tuple[bytes, str]:
    """Rubbish at the end."""
    size = random.choice((1, 100, 5000))
    return data + random.choice((bytes(size), random.randbytes(size))), f"{size} bytes added"


BYTES: tuple[Edit, ...] = (flip, flip, flip, overwrite, number, cut, remove, repeat, splice, append)


def structured(name: str, keep_parts: bool = False, forged: bool = True) -> tuple[Edit, ...]:
    """Damage to the parts and lengths of a format, among damage to bytes.

    Args:
        name: of the format.
        keep_parts: remove none, where nobody could notice.
        forged: make the format's checksums right half of the time, as somebody would who means harm.
    """
    find, make_right = STRUCTURES[name]

    def mended(edit: Edit) -> Edit:
        def change(random: Random, data: bytes) -> tuple[bytes, str]:
            data, said = edit(random, data)
            return (make_right(data), f"{said}, checksums right") if forged and random.random() < 0.5 else (data, said)

        return change

    def length(random: Random, data: bytes) -> tuple[bytes, str]:
        found = find(data).lengths
        if not found:
            return flip(random, data)
        one, value = (
            random.choice(found),
            random.choice((*NUMBERS, random.randrange(1, 4096), -512, -1000)),
        )
        return one.put(data, value), f"length {value} at {one.offset}"

    def part(random: Random, data: bytes) -> tuple[bytes, str]:
        found = find(data).parts
        if len(found) < 2:
            return repeat(random, data)
        (start, end), (other, last) = random.sample(found, 2)
        what = random.choice(("twice", "moved") if keep_parts else ("twice", "removed", "moved"))
        piece = data[start:end]
        if what == "twice":
            return data[:end] + piece + data[end:], f"part {start}-{end} twice"
        rest = data[:start] + data[end:]
        if what == "removed":
            return rest, f"part {start}-{end} removed"
        place = other if other < start else max(start, last - len(piece))
        return rest[:place] + piece + rest[place:], f"part {start}-{end} moved to {place}"

    def in_head(random: Random, data: bytes) -> tuple[bytes, str]:
        """A byte near the beginning of a part, where its fields are."""
        found = find(data).parts
        if not found:
            return flip(random, data)
        start, end = random.choice(found)
        place = min(start + random.randrange(min(max(end - start, 1), 512)), len(data) - 1)
        value = random.choice((0, 0x7F, 0x80, 0xFF, ord("/"), ord("."), random.randrange(256)))
        return data[:place] + bytes([value]) + data[place + 1 :], f"byte {place} is {value}"

    return (*BYTES, *map(mended, (length, length, length, part, part, in_head, in_head, in_head, flip, overwrite)))


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all nodes but the root."""
    found = []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        found += [(*path, key), *_places(value, (*path, key))]
    return found


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def change_tree(random: Random, tree: Any, values: Callable[[Random], Any] = hostile) -> tuple[Any, str]:
    """Something else at one place of nested lists and dictionaries: a value, a key, nothing, or twice the same."""
    places = _places(tree)
    if not places or random.random() < 0.02:
        return values(random), "another root"
    *above, key = random.choice(places)
    holder = _at(tree, tuple(above))
    what = random.choice(("value", "value", "value", "removed", "key", "twice"))
    said = f"{'.'.join(map(str, (*above, key)))[-80:]}: {what}"
    if what == "value":
        holder[key] = values(random)
        return tree, f"{said} {str(holder[key])[:40]!r}"
    if what == "removed":
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(key, values(random) if what == "key" else holder[key])
    else:
        holder[str(values(random))[:100] if what == "key" else f"{key}2"] = (
            holder.pop(key) if what == "key" else holder[key]
        )
    return tree, said


def in_json(random: Random, data: bytes) -> tuple[bytes, str]:
    """A value, key or item of a JSON text; text that is none is damaged as bytes."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return flip(random, data)
    if random.random() < 0.03:
        return b"[" * 200_000, "200000 brackets"
    tree, said = change_tree(random, tree)
    text = json.dumps(tree, ensure_ascii=random.random() < 0.5)
    return text.encode("utf-8", "surrogatepass"), said


def in_text(random: Random, data: bytes) -> tuple[bytes, str]:
    """A hostile text at a place, or instead of all."""
    new = random.choice(TEXTS).encode("utf-8", "surrogatepass")
    if random.random() < 0.2:
        return new, "another text"
    place = random.randint(0, len(data))
    return data[:place] + new + data[place:], f"{new[:20]!r} at {place}"


def encoding(random: Random, data: bytes) -> tuple[bytes, str]:
    """Another encoding of the same text."""
    name = random.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1", "utf-7"))
    return (data.decode("utf-8", "replace") + "é").encode(name, "replace"), name


TEXT_EDITS = (*structured("text"), in_text, in_text, encoding)
EDITS: dict[str, tuple[Edit, ...]] = {
    **{name: structured(name, keep_parts=name == "tar") for name in STRUCTURES if name != "text"},
    **{f"{name}.unforged": structured(name, name == "tar", forged=False) for name in ("tar", "zip")},
    "bytes": BYTES,
    "text": TEXT_EDITS,
    "json": (*BYTES, *(in_json,) * 20, in_text, encoding),
}
