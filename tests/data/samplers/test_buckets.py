import numpy as np
import pytest

from vidlab.data.samplers.assignment import CHUNK, REASONS, Assignment, Bucket
from vidlab.data.samplers.buckets import Bucketing
from vidlab.errors import UserError

# Open-Sora Plan v1.3 as released: any ratio, rounded down to 32 pixels; 1 + 4 n frames, from 29.
RELEASED = {"stride": 32, "ratios": None, "temporal_stride": 4, "first_frame_alone": True, "min_frames": 29}


def bucket_of(rule: Bucketing, frames: int, height: int, width: int, fps: float = 24.0) -> Bucket | str:
    """The bucket of one clip, or why it has none."""
    found = rule.assign(*(np.array([value]) for value in (frames, height, width, fps)))
    return found.buckets[0] if found.buckets else next(iter(found.dropped))


def size(bucketing: Bucketing, height: int, width: int, frames: int = 93) -> tuple[int, int]:
    bucket = bucket_of(bucketing, frames, height, width)
    assert isinstance(bucket, Bucket)
    return bucket.height, bucket.width


def test_the_papers_example():
    """Open-Sora Plan 3.1, equations 17 to 20: m = 65536 and s = 16."""
    rule = Bucketing(65536, 16, [[1, 1], [3, 4], [9, 16]])
    assert size(rule, 1080, 1080) == (256, 256)
    assert size(rule, 768, 1024) == (192, 256) and 192 * 256 == 49152
    assert size(rule, 1080, 1920) == (144, 256)
    assert rule.token_range() == (36864, 65536)
    assert Bucketing(65536, 16, [[9, 16]]).token_range() == (36864, 36864)


def test_the_scale_of_equation_19_is_exact():
    for ratio in ((1, 1), (3, 4), (9, 16), (2, 5)):
        for m in range(ratio[0] * ratio[1] * 256, 200_000, 3331):
            height, width = size(Bucketing(m, 16, [ratio]), 10**5, 10**5)
            k = height // (16 * ratio[0])
            assert (height, width) == (16 * ratio[0] * k, 16 * ratio[1] * k)
            area = ratio[0] * ratio[1] * 256
            assert area * k**2 <= m < area * (k + 1) ** 2


@pytest.mark.parametrize(
    ("m", "source", "expected"),
    [
        (236544, (720, 1280), (352, 640)),
        (236544, (480, 640), (416, 544)),
        (236544, (1080, 1080), (480, 480)),
        (102400, (720, 1280), (224, 416)),
        (236544, (300, 400), (288, 384)),  # smaller than m: only rounded
    ],
)
def test_sizes_of_the_released_code(m, source, expected):
    assert size(Bucketing(m, **RELEASED), *source) == expected


@pytest.mark.parametrize(
    ("multiple", "frames", "kept"),
    [(1, 28, 0), (1, 49, 49), (1, 80, 77), (1, 100, 97), (8, 45, 29), (8, 80, 61), (8, 100, 93)],
)
def test_frame_counts_of_the_released_code(multiple, frames, kept):
    found = bucket_of(Bucketing(236544, **RELEASED, latent_multiple=multiple), frames, 720, 1280, 24.0)
    assert found == (Bucket(kept, 352, 640) if kept else "too few frames")


def test_tokens_of_the_released_model():
    """93 x 352 x 640 is 24 x 22 x 40 = 21120 tokens of 16 x 16 pixels."""
    assert Bucketing(236544, **RELEASED).tokens(Bucket(93, 352, 640)) == 21120 * 16**2


def test_short_and_small_clips_and_extreme_ratios_are_kept_in_the_nearest_bucket():
    rule = Bucketing(65536, temporal_stride=4, first_frame_alone=True, max_frames=93)
    assert bucket_of(rule, 28, 720, 1280, 24.0) == Bucket(25, 144, 256)
    assert bucket_of(rule, 1, 720, 1280, 24.0) == Bucket(1, 144, 256)
    assert bucket_of(rule, 93, 100, 100, 24.0) == Bucket(93, 96, 96)
    assert bucket_of(rule, 93, 200, 2000, 24.0) == Bucket(93, 144, 256)
    # 9:16 at its smallest is 144 x 256, which this clip does not cover: 3:4 is next
    assert bucket_of(rule, 93, 140, 250, 24.0) == Bucket(93, 96, 128)


def test_every_reason_for_dropping():
    rule = Bucketing(65536, min_frames=5, min_tokens=65536 // 4, max_aspect=2)
    assert bucket_of(rule, 4, 720, 1280, 24.0) == "too few frames"
    assert bucket_of(rule, 5, 112, 112, 24.0) == "too small"
    assert bucket_of(rule, 5, 128, 128, 24.0) == Bucket(5, 128, 128)
    assert bucket_of(rule, 5, 500, 1001, 24.0) == bucket_of(rule, 5, 1001, 500, 24.0) == "extreme aspect ratio"
    assert bucket_of(rule, 5, 500, 1000, 24.0) == Bucket(5, 144, 256)
    assert bucket_of(Bucketing(65536), 9, 15, 400, 24.0) == "too small"
    assert bucket_of(Bucketing(65536, temporal_stride=4), 3, 720, 1280, 24.0) == "too few frames"


def test_frames_by_distance_and_by_rate():
    assert bucket_of(Bucketing(65536).completed(8, 256, 256, 3), 100, 256, 256, 24.0) == Bucket(8, 256, 256)
    assert bucket_of(Bucketing(65536).completed(99, 256, 256, 3), 10, 256, 256, 24.0) == Bucket(4, 256, 256)
    own = Bucketing(65536, max_frames=6, frame_step=2).completed(99, 256, 256, 3)
    assert bucket_of(own, 9, 256, 256).frames == 5
    by_rate = Bucketing(65536, fps=8.0)
    assert [bucket_of(by_rate, 25, 256, 256, fps).frames for fps in (24.0, 30.0, 8.0, 4.0)] == [9, 7, 25, 25]


def mix(clips: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """80 % 1280x720, 12 % portrait, 8 % 640x480; durations log-normal with median 3.7 s, sigma 0.7; 24 fps."""
    random = np.random.default_rng(seed)
    kind = random.choice(3, clips, p=[0.8, 0.12, 0.08])
    frames = np.clip(24 * random.lognormal(1.3, 0.7, clips), 1, 720).astype(np.int32)
    height, width = np.array([720, 1280, 480], np.int32)[kind], np.array([1280, 720, 640], np.int32)[kind]
    return frames, height, width, np.full(clips, 24.0)


@pytest.mark.parametrize("settings", [{}, {"ratios": None, "stride": 32}, {"min_tokens": 40000, "min_frames": 29}])
def test_never_enlarged_and_none_without_a_reason(settings):
    random = np.random.default_rng(1)
    frames, height, width = (random.integers(1, most, 3000) for most in (200, 800, 800))
    rule = Bucketing(65536, temporal_stride=4, first_frame_alone=True, max_frames=93, **settings)
    found = rule.assign(frames, height, width, np.full(3000, 24.0))
    assert sum(found.counts) + sum(found.dropped.values()) == 3000
    assert found.buckets == tuple(sorted(set(found.buckets)))
    for code, *clip in zip(found.codes.tolist(), frames, height, width, strict=True):
        if code < 0:
            assert REASONS[-1 - code] in found.dropped
            continue
        bucket = found.buckets[code]
        assert bucket.frames <= clip[0] and bucket.height <= clip[1] and bucket.width <= clip[2]
        assert bucket.height * bucket.width <= 65536 and bucket.frames % 4 == 1
        assert bucket.height % rule.stride == bucket.width % rule.stride == 0


def test_many_clips_are_treated_as_one_is():
    columns = mix(CHUNK + 500)
    rule = Bucketing(65536, temporal_stride=4, max_frames=93)
    found = rule.assign(*columns)
    for place in (0, 7, CHUNK - 1, CHUNK, CHUNK + 499):
        one = bucket_of(rule, *(column[place].item() for column in columns))
        code = found.codes[place]
        assert one == (found.buckets[code] if code >= 0 else REASONS[-1 - code])
    backwards = rule.assign(*(column[::-1] for column in columns))
    assert backwards.buckets == found.buckets and np.array_equal(backwards.codes[::-1], found.codes)


@pytest.mark.parametrize("budget", [10, 25, 100])
def test_tokens_of_full_batches_are_level(budget):
    """With a budget of n times the largest clip, batches differ by less than 1 / n."""
    rule = Bucketing(65536, temporal_stride=4, first_frame_alone=True, max_frames=93)
    buckets = rule.assign(*mix(20_000)).buckets
    largest = max(map(rule.tokens, buckets))
    sizes = rule.batch_sizes(buckets, batch_size=budget)
    tokens = [size * rule.tokens(bucket) for size, bucket in zip(sizes, buckets, strict=True)]
    assert max(tokens) <= budget * largest and min(tokens) > (budget - 1) * largest
    assert 1 - min(tokens) / max(tokens) < 1 / budget


def test_a_budget_below_one_clip_is_refused():
    rule = Bucketing(65536, tokens_per_batch=65535)
    with pytest.raises(UserError, match=r"tokens_per_batch=65535: one clip of bucket 1x256x256 has 65536"):
        rule.batch_sizes([Bucket(1, 256, 256)], 1)


def assignment(counts: dict[tuple[int, int, int], int], dropped: int = 0) -> Assignment:
    buckets = sorted(counts)
    codes = [place for place, shape in enumerate(buckets) for _ in range(counts[shape])] + [-2] * dropped
    return Assignment(tuple(Bucket(*shape) for shape in buckets), np.array(codes, np.int16))


def test_rare_buckets_move_to_the_largest_they_cover():
    found = assignment({(5, 96, 96): 10, (5, 96, 128): 10, (9, 128, 96): 1, (9, 96, 128): 2, (1, 32, 32): 9}, dropped=3)
    merged = found.merge_rare([4] * 5)
    assert merged.buckets == (Bucket(1, 32, 32), Bucket(5, 96, 96), Bucket(5, 96, 128))
    assert merged.counts == [9, 11, 12] and merged.dropped == found.dropped == {"too small": 3}
    assert {(move.clips, str(move.origin), str(move.target)) for move in merged.moves} == {
        (1, "9x128x96", "5x96x96"),
        (2, "9x96x128", "5x96x128"),
    }


def test_rare_buckets_gather():
    """Two rare buckets make a common one; a video does not become an image; what covers nothing stays."""
    merged = assignment({(9, 64, 64): 2, (5, 64, 64): 2, (1, 32, 32): 9}).merge_rare([4] * 3)
    assert dict(zip(map(str, merged.buckets), merged.counts, strict=True)) == {"1x32x32": 9, "5x64x64": 4}
    alone = assignment({(9, 64, 64): 2, (1, 32, 32): 9})
    assert alone.merge_rare([4, 4]) is alone


def test_unused_ratios_are_told():
    assert Bucketing(4096).unused_ratios() == {(9, 16): 36864, (16, 9): 36864}
    assert Bucketing(4096).token_range() == (3072, 4096)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_tokens": 100}, r"max_tokens=100: no ratio fits .*stride=16; it must be 256 or more"),
        ({"ratios": [[2, 4]]}, r"ratios=\[\[2, 4\]\].*coprime"),
        ({"ratios": []}, "ratios="),
        ({"ratios": [[1, 1, 1]]}, "ratios="),
        ({"stride": 0}, r"data\.bucketing\.stride=0: it must be 1 or more"),
        ({"image_every": 1}, "image_every=1: it must be 2 or more"),
        ({"tail": "lose"}, "tail=lose: it must be one of drop, pad, smaller"),
        ({"fps": 0.0}, "fps=0.0: it must be more than 0"),
        ({"max_aspect": 1.0}, "max_aspect=1.0: it must be more than 1"),
        ({"weights": {"a": -1.0}}, "weights="),
    ],
)
def test_settings_out_of_range_are_named(settings, named):
    with pytest.raises(UserError, match=named):
        Bucketing(**{"max_tokens": 65536, **settings})
