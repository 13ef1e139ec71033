"""One word for one thing, American spelling, in code, settings and pages: words that were replaced do not come back."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "conf", "docs", "benchmarks", "experiments", "notebooks", "tests")
SUFFIXES = (".py", ".md", ".yaml", ".toml", ".txt", ".sh")
# Where others are written for good: what earlier checkpoints and settings hold, captions, errors of others, this list.
ABOUT_OTHERS = {
    "src/vidlab/lab/earlier_names.py", "src/vidlab/lab/cli/error_messages.py", "src/vidlab/data/storage/clip_row.py",
    "src/vidlab/data/moving_shapes/words.py", "tests/data/storage/test_index.py", "tests/test_assets.py",
    "tests/test_replaced_words.py",
}  # fmt: skip
# A pattern of whole words: what is written instead.
WORDS = {
    r"joinedplan|jointplan": "SingleBucketPlan, InterleavedPlan",
    r"clipview": "ClipTransform",
    r"plane_waves|loudness_of_positions": "fourier_positions, POSITION_SCALE",
    r"take_up": "restore_gradients",
    r"surroundings": "RunContext",
    r"usual_frames|given_frames": "default_num_frames, conditioning_frames",
    r"fill_in": "interpolate",
    r"latent_moments|wfvae_start": "latent_stats, wfvae_init",
    r".*(colour|behaviour|neighbour|honour|favour).*": "color, behavior, neighbor, honor, favor",
    r".*(optim|normal|parameter|initial|regular|general|serial|standard|discret|quant|recogn|organ|summar|visual|minim"
    r"|maxim|random|vector|token|synchron|equal|penal|final|orthogonal|categor|custom|real|special)"
    r"is(e|es|ed|er|ers|ing|ation|ations)": "-ize",
    r"analys(e|ed|er|ing)": "analyze",
    r"(artefact|licence|catalogue|judgement|greyscale|misspelt|whilst|amongst)s?": "artifact, license, catalog, ...",
    r"(label|model|travel|cancel|signal)l(ed|ing|er)": "one l: labeled, modeled, canceled",
}
PHRASES = {"starts silent": "is zero-initialized", "start silent": "are zero-initialized"}


def misses(text: str) -> Iterator[str]:
    """What is written, and what to write."""
    lower = text.lower()
    for word in set(re.findall(r"[a-z_]+", lower)):
        if word not in KNOWN:
            KNOWN[word] = next((instead for pattern, instead in WORDS.items() if re.fullmatch(pattern, word)), None)
        if KNOWN[word] is not None:
            yield f"{word!r}, write {KNOWN[word]}"
    yield from (f"{phrase!r}, write {instead}" for phrase, instead in PHRASES.items() if phrase in lower)


KNOWN: dict[str, str | None] = {}  # most words are in many files


def test_replaced_words_do_not_come_back():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    named = {path.relative_to(ROOT).as_posix(): path for path in [*paths, *ROOT.glob("*.md"), *ROOT.glob("*.toml")]}
    assert len(named) > 1000 and named.keys() >= ABOUT_OTHERS
    found = [f"{name}: {miss}" for name in named.keys() - ABOUT_OTHERS for miss in misses(named[name].read_text())]
    assert sorted(found) == []


def test_a_replaced_word_is_found():
    assert list(misses("Analyses realign a neighborhood")) == []
    assert [miss.partition(",")[0] for miss in misses("COLOURED")] == ["'coloured'"]
    assert [miss.partition(",")[0] for miss in misses("denormalised")] == ["'denormalised'"]
    assert [miss.partition(",")[0] for miss in misses("a branch that starts silent")] == ["'starts silent'"]
