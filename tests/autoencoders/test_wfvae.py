from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from vidlab.autoencoders.learned import WAVELET_BANDS
from vidlab.autoencoders.tiling import Tiling, tiled
from vidlab.autoencoders.wfvae import WFVAE
from vidlab.clip import Stride
from vidlab.errors import UserError
from vidlab.layers.causal import whole

BANDS = frozenset({WAVELET_BANDS})
TINY = {"latent_channels": 4, "width": 8, "encoder_energy": 4, "decoder_energy": 4, "encoder_blocks": 1,
        "decoder_blocks": 1}  # fmt: skip


def tiny(**settings) -> WFVAE:
    torch.manual_seed(0)
    return WFVAE(**{**TINY, **settings}).eval()


def clip(frames=5, height=16, width=16, batch=1) -> torch.Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# millions as published or counted from the published classes: whole, encoder, decoder
SIZES = {
    "S": ({}, 145_576_652, (145.6, 37.18, 108.39)),
    "4 channels": ({"latent_channels": 4, "encoder_energy": 128}, 146_496_708, (146.5, None, None)),
    "v1.3": ({"connect_blocks": 2}, 147_347_660, (147.3, 37.18, 110.17)),
    "160": ({"width": 160, "latent_channels": 16, "encoder_energy": 128}, 223_874_492, (223.9, None, None)),
    "L": ({"width": 192, "latent_channels": 16, "encoder_energy": 128}, 317_081_244, (317.1, None, None)),
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_of_the_published_sizes(name):
    settings, exact, (total, encoder, decoder) = SIZES[name]
    with torch.device("meta"):
        model = WFVAE(**settings)
    assert count(model) == exact and round(count(model) / 1e6, 1) == total
    assert encoder is None or round(count(model.encoder) / 1e6, 2) == encoder
    assert decoder is None or round(count(model.decoder) / 1e6, 2) == decoder


def test_l_in_single_precision_has_the_size_of_its_file():
    with torch.device("meta"):
        model = WFVAE(width=192, latent_channels=16, encoder_energy=128)
    assert round(4 * count(model) / 1e9, 2) == 1.27


def test_published_names_and_shapes():
    with torch.device("meta"):
        state = WFVAE(connect_blocks=2).state_dict()
    expected = {
        "encoder.down1.0.weight": (128, 24, 3, 3),
        "encoder.down2.0.weight": (256, 192, 3, 3),
        "encoder.mid.0.conv1.conv.weight": (512, 320, 3, 3, 3),
        "encoder.connect_l1.weight": (64, 12, 3, 3),
        "encoder.conv_out.conv.weight": (16, 512, 3, 3, 3),
        "decoder.conv_in.conv.weight": (512, 8, 3, 3, 3),
        "decoder.up2.3.conv2.conv.weight": (640, 640, 3, 3, 3),
        "decoder.connect_l2.2.weight": (24, 128, 3, 3),
        "decoder.conv_out.weight": (24, 128, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert all(f"{part}.norm_out.norm.weight" in state for part in ("encoder", "decoder"))


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (5, 2), (9, 3), (93, 24)])
def test_latent_shapes(frames, latent):
    model = tiny()
    assert model.stride == Stride(4, 8, 8, first_frame_alone=True)
    assert model.latent_shape(frames, 64, 40) == (4, latent, 8, 5)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_an_image_is_a_video_of_one_frame(frames):
    model, x = tiny(), clip(frames, 16, 24, batch=2)
    with torch.no_grad():
        latents = model.encode(x)
        assert latents.shape == (2, *model.latent_shape(frames, 16, 24)) and latents.dtype == torch.float32
        assert model.decode(latents).shape == x.shape
        torch.testing.assert_close(latents[:, :, :1], model.encode(x[:, :, :1]))


def test_it_is_causal():
    model, x = tiny(), clip(13)
    changed = x.clone()
    changed[:, :, 5:] = 0
    with torch.no_grad():
        before, after = model.encode(x), model.encode(changed)
    torch.testing.assert_close(before[:, :, :2], after[:, :, :2])
    assert (before[:, :, 2] - after[:, :, 2]).abs().max() > 1e-4


LENGTHS = range(1, 66, 4)


@cache
def unchunked(compat):
    """A model, a clip, and the latents and pixels of it at every length."""
    torch.manual_seed(0)
    model, x = tiny(compat=compat, connect_blocks=2 if compat else 1, scale=1.0), clip(65)
    with torch.no_grad():
        latents = {frames: model.encode(x[:, :, :frames]) for frames in (LENGTHS if not compat else (5, 13, 45, 65))}
        return model, x, {frames: (latent, model.decode(latent)) for frames, latent in latents.items()}


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))])
def test_chunks_change_nothing_for_any_length(chunk, compat, monkeypatch):
    model, x, expected = unchunked(compat)
    monkeypatch.setattr(model, "chunk", chunk)
    with torch.no_grad():
        for frames, (latents, pixels) in expected.items():
            in_chunks = model.decode(latents)
            assert in_chunks.shape == pixels.shape
            assert (model.encode(x[:, :, :frames]) - latents).abs().max() <= 1e-5
            assert (in_chunks - pixels).abs().max() <= 1e-5 and pixels.abs().max() > 0.1


def test_chunks_pass_gradients():
    model, x = tiny(chunk=1).double(), clip(9).double()
    model.decode(model.encode(x)).square().sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.chunk = None
    model.decode(model.encode(x)).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.parametrize("sizes", [(1, 4, 4, 4), (13,), (3, 3, 7), (2,) * 6 + (1,), (1,) * 13])
def test_frames_fed_in_any_number(sizes):
    model, x = tiny(), clip(13)
    with torch.no_grad():
        direct = model.encode(x)
        stream = model.encoding_stream()
        parts = [stream.feed(part).mean for part in x.split(sizes, dim=2)]
    stream.finish()
    torch.testing.assert_close(torch.cat(parts, dim=2), direct)
    fed = torch.tensor(sizes).cumsum(0)
    assert [p.shape[2] for p in parts] == torch.diff((fed + 3) // 4, prepend=torch.tensor([0])).tolist()


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (4,), (2, 2), (3, 1), (1, 3)])
def test_latents_fed_in_any_number(sizes):
    model, latents = tiny(), torch.randn(1, 4, 4, 2, 2)
    with torch.no_grad():
        direct = model.decode(latents)
    stream = model.decoding_stream()
    parts = [stream.feed(part) for part in latents.split(sizes, dim=2)]
    last = stream.finish()
    assert last is not None and last.shape[2] == 2  # what the interpolation held back
    torch.testing.assert_close(torch.cat([*parts, last], dim=2), direct)


def test_a_stream_of_one_image():
    model, latents = tiny(), torch.randn(1, 4, 1, 2, 2)
    stream = model.decoding_stream()
    with torch.no_grad():
        torch.testing.assert_close(stream.feed(latents), model.decode(latents))
    assert stream.finish() is None


def test_left_over_frames_are_an_error():
    stream = tiny().encoding_stream()
    stream.feed(clip(7))
    with pytest.raises(UserError, match=r"1 \+ 4n frames; 2 at its end"):
        stream.finish()


def test_what_comes_out_of_one_stream_goes_into_the_other():
    model, x = tiny(), clip(9)
    encoding, decoding = model.encoding_stream(), model.decoding_stream()
    parts = [decoding.feed(encoding.feed(frame).mean) for frame in x.split(1, dim=2)]  # at times no latents
    parts.append(decoding.finish())
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(parts, dim=2), model.decode(model.encode(x)))
    assert decoding.finish() is None
    with pytest.raises(UserError, match="finished; a new one needs a new decoding stream"):
        decoding.feed(torch.randn(1, 4, 1, 2, 2))


def test_a_stream_is_of_one_size():
    encoding, decoding = tiny().encoding_stream(), tiny().decoding_stream()
    encoding.feed(clip(5))
    with pytest.raises(UserError, match=r"1 videos of 24 x 16 after 1 of 16 x 16"):
        encoding.feed(clip(4, height=24))
    decoding.feed(torch.randn(1, 4, 1, 2, 2))
    with pytest.raises(UserError, match=r"2 videos of 2 x 2 after 1 of 2 x 2"):
        decoding.feed(torch.randn(2, 4, 1, 2, 2))
    with pytest.raises(UserError, match=r"decodes latents \(B, 4, .*given \(1, 3, 1, 2, 2\)"):
        decoding.feed(torch.randn(1, 3, 1, 2, 2))


@pytest.mark.parametrize("chunk", [None, 1])
def test_weights_of_half_precision(chunk):
    model, x = tiny(chunk=chunk), clip(9)
    with torch.no_grad():
        latents, pixels = (exact := model.encode(x)), model.decode(exact)
        model.bfloat16()
        torch.testing.assert_close(
            model.encode(x.bfloat16()).float(), latents, rtol=0, atol=0.05 * latents.std().item()
        )
        torch.testing.assert_close(model.decode(latents.bfloat16()).float(), pixels, rtol=0, atol=0.2)


def largest_activation(model: WFVAE, work) -> int:
    """The most numbers that any layer gives in one call."""
    largest = 0

    def note(module, arguments, output) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.numel())

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    with torch.no_grad():
        work()
    for hook in hooks:
        hook.remove()
    return largest


def test_memory_does_not_grow_with_length():
    model, x = tiny(chunk=2), clip(65)
    latents = model.encode(x).detach()
    short = [
        largest_activation(model, lambda: model.encode(x[:, :, :17])),
        largest_activation(model, lambda: model.decode(latents[:, :, :5])),
    ]
    assert short == [
        largest_activation(model, lambda: model.encode(x)),
        largest_activation(model, lambda: model.decode(latents)),
    ]
    model.chunk = None
    assert largest_activation(model, lambda: model.encode(x)) > 5 * short[0]


def test_streams_hold_a_constant_number_of_values():
    model, x = tiny(), clip(33)
    encoding, decoding, held = model.encoding_stream(), model.decoding_stream(), []
    for part in (x[:, :, :1], *x[:, :, 1:].split(4, dim=2)):
        decoding.feed(encoding.feed(part).mean)
        held.append((encoding.held_values(), decoding.held_values()))
    assert len(set(held[2:])) == 1 and min(held[2]) > 0


def test_the_energy_path_alone_reconstructs_low_frequencies():
    """With a backbone that gives nothing, decoder bands equal to the encoder's give back its low band of low bands."""
    model, x = tiny(), clip(9)
    level2, level3 = model.encode_to_moments(x, BANDS).features[WAVELET_BANDS]
    assert level2.shape == (1, 12, 5, 4, 4) and level3.shape == (1, 24, 3, 2, 2)
    for module in (model.decoder.conv_out, model.decoder.connect_l1[-1], model.decoder.connect_l2[-1]):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    with (
        torch.no_grad()
    ):  # the same brightness everywhere in the lowest band: 8 * (2 * sqrt 2)^-1 a level in 3-D, 2 in 2-D
        model.decoder.connect_l2[-1].bias[:3] = 0.5 * (8**0.5) ** 2 * 2
        pixels = model.decode(torch.randn(1, 4, 3, 2, 2))
    torch.testing.assert_close(pixels, torch.full_like(pixels, 0.5))


def test_bands_of_decoder_and_encoder_correspond():
    model, x = tiny(), clip(9)
    encoded = model.encode_to_moments(x, BANDS)
    decoded = model.decode_z(encoded.posterior.mode, BANDS)
    assert decoded.pixels.shape == x.shape
    bands = zip(decoded.features[WAVELET_BANDS], encoded.features[WAVELET_BANDS], strict=True)
    assert [(ours.shape == theirs.shape) for ours, theirs in bands] == [True, True]
    assert model.encode_to_moments(x).features == {}
    with pytest.raises(ValueError, match=r"WFVAE has no feature \['h'\]; it has \['wavelet_bands'\]"):
        model.decode_z(encoded.posterior.mode, frozenset({"h"}))


def test_every_parameter_learns():
    model, x = tiny().train(), clip(9)
    posterior = model.encode_to_moments(x).posterior
    decoded = model.decode_z(posterior.sample(torch.randn_like(posterior.mean)))
    (decoded.pixels.square().sum() + posterior.log_variance.sum()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # a constant added to all keys moves no attention
    assert [name for name in idle if not name.endswith(".k.conv.bias")] == []
    assert model.last_decoder_weight().grad is not None


def test_scale_and_shift_of_each_channel():
    plain, x = tiny(scale=1.0, shift=0.0), clip()
    scaled = tiny(scale=[1.0, 2.0, 0.5, 4.0], shift=[0.0, 1.0, -1.0, 0.25])
    with torch.no_grad():
        z, posterior = plain.posterior(x), scaled.posterior(x)
        for channel, (scale, shift) in enumerate([(1.0, 0.0), (2.0, 1.0), (0.5, -1.0), (4.0, 0.25)]):
            torch.testing.assert_close(posterior.mean[:, channel], (z.mean[:, channel] - shift) * scale)
            spread = (0.5 * posterior.log_variance[:, channel]).exp() / (0.5 * z.log_variance[:, channel]).exp()
            torch.testing.assert_close(spread, torch.full_like(spread, scale))
        assert torch.equal(scaled.encode(x), posterior.mode)
        torch.testing.assert_close(scaled.decode(posterior.mode), plain.decode(z.mode))
    assert tiny().latent_scale.flatten().tolist() == pytest.approx([0.18215] * 4)


def test_the_variance_is_bounded():
    model = tiny(scale=1.0)
    with torch.no_grad():
        model.encoder.conv_out.conv.bias[4:6] = torch.tensor([100.0, -100.0])
        log_variance = model.posterior(clip()).log_variance
    assert log_variance[:, 0].unique().tolist() == [20] and log_variance[:, 1].unique().tolist() == [-30]


def test_bf16_autocast_gives_single_precision_latents():
    model, x = tiny(), clip()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        latents = model.encode(x)
        pixels = model.decode(latents)
    assert latents.dtype == pixels.dtype == torch.float32
    with torch.no_grad():
        assert (latents - model.encode(x)).abs().max() < 0.05 * latents.abs().max()


def test_save_and_load(tmp_path):
    model, x = tiny(scale=0.5), clip()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = tiny()
    nn.init.normal_(other.decoder.conv_out.weight)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        assert torch.equal(other.decode(other.encode(x)), model.decode(model.encode(x)))


def test_tiles_blend_and_are_lossy():
    model, x = tiny(), clip(5, 48, 40)
    with torch.no_grad():
        latents = model.encode(x)
        pixels = model.decode(latents)
        model.tiling = Tiling(size=32, overlap=16)
        tiled_latents, tiled_pixels = model.encode(x), model.decode(latents)
        assert tiled_latents.shape == latents.shape and tiled_pixels.shape == pixels.shape
        assert (tiled_latents - latents).abs().max() > 1e-4  # attention and borders see less
        assert (tiled_pixels - pixels).abs().max() > 1e-4
        model.tiling = Tiling(size=64, overlap=16)  # one tile is the whole
        torch.testing.assert_close(model.encode(x), latents)
        torch.testing.assert_close(model.decode(latents), pixels)
        model.tiling, model.chunk = Tiling(size=32, overlap=16), 1
        torch.testing.assert_close(model.encode(x), tiled_latents)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 40), (24, 72)])
@pytest.mark.parametrize(("size", "overlap"), [(32, 16), (24, 8), (16, 0)])
def test_tiles_of_a_local_process_are_exact(height, width, size, overlap):
    x = clip(2, height, width)
    whole_picture = interpolate(x, scale_factor=(1, 2, 2))
    found = tiled(lambda tile: interpolate(tile, scale_factor=(1, 2, 2)), x, Tiling(size, overlap), 2)
    torch.testing.assert_close(found, whole_picture)


def test_neighbors_blend_linearly():
    ramp = tiled(lambda tile: torch.full_like(tile, float(tile[..., 0, 0].max())),
                 torch.arange(24.0).expand(1, 1, 1, 16, 24), Tiling(16, 8), 1)  # fmt: skip
    # tiles of value 0 and 8 share eight columns
    expected = [0.0] * 8 + [8 * k / 9 for k in range(1, 9)] + [8.0] * 8
    assert ramp[0, 0, 0, 3].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (20, 8), (64, 12), (64, 40), (64, -8)])
def test_tiles_that_do_not_fit(size, overlap):
    with pytest.raises(UserError, match=r"autoencoder\.tiling: size=.* multiples of 8"):
        Tiling(size, overlap)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (clip(8), r"data\.frames=8 does not fit WFVAE: it must be 1 plus a multiple of 4\. Use data\.frames=9"),
        (clip(5, 20), r"data\.height=20 .*multiple of 8\. Use data\.height=16"),
        (clip(5, 16, 31), r"data\.width=31 .*multiple of 8"),
        (clip(5) * float("nan"), "NaN or infinite pixels"),
        (clip(5) * float("inf"), "NaN or infinite pixels"),
    ],
    ids=["frames", "height", "width", "nan", "inf"],
)  # fmt: skip
def test_clips_it_cannot_take(x, message):
    with pytest.raises(UserError, match=message):
        tiny().encode(x)


@pytest.mark.parametrize(
    "x", [torch.zeros(1, 1, 5, 16, 16), torch.zeros(1, 3, 5, 16, 16, dtype=torch.int16)], ids=["gray", "10 bits"]
)
def test_grey_and_integer_pixels(x):
    with pytest.raises(UserError, match=r"3 colors as floats in \[-1, 1\].*Repeat a gray channel"):
        tiny().check_frames(x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, r"autoencoder\.width=0 must be 1 or more"),
        ({"chunk": 0}, r"autoencoder\.chunk=0 must be 1 or more"),
        ({"decoder_blocks": 0}, r"autoencoder\.decoder_blocks=0 must be 1 or more"),
        ({"scale": [1.0, 2.0]}, r"autoencoder\.scale has 2 numbers and the latents have 4 channels"),
        ({"scale": 0.0}, r"autoencoder\.scale=0\.0 must be finite, and above 0"),
        ({"shift": [0.0, 0.0, 0.0, float("nan")]}, r"autoencoder\.shift=.* must be finite"),
        ({"path": "nowhere"}, r"autoencoder\.path=nowhere: no such file or folder"),
    ],
)  # fmt: skip
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        tiny(**settings)


def test_random_weights_are_not_served():
    with pytest.raises(UserError, match=r"autoencoder\.path is not set, so the autoencoder has random weights"):
        tiny().check_trained()


def test_attention_stays_within_frames():
    model = tiny()
    block = model.encoder.mid[1]
    x = torch.randn(1, 32, 3, 2, 2)
    with torch.no_grad():
        together = block(x, whole())
        alone = torch.cat([block(frame, whole()) for frame in x.split(1, dim=2)], dim=2)
    torch.testing.assert_close(together, alone)


def test_it_learns_a_clip():
    """Training's own path, unscaled latents and all, and what users then get."""
    model = tiny().train()
    ramp = torch.linspace(-1, 1, 16)
    x = torch.stack([torch.roll(ramp, 2 * t).expand(3, 16, 16) for t in range(5)], dim=1)[None]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss = (model.decode_z(model.encode_to_moments(x).posterior.mode).pixels - x).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        error = (model.decode(model.encode(x)) - x).abs().mean()
    assert error < 0.25  # 0.5 for a gray clip
