import gc
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from tiny_release import make_release, write_text_encoder, write_vae
from vidlab.autoencoders.wfvae import WFVAE
from vidlab.backbones.open_sora_plan import OpenSoraPlan
from vidlab.clip import DenoiserInput, LatentShape
from vidlab.errors import MissingPackageError, UserError
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.pipelines.conditioning_frames import GivenFrames
from vidlab.pipelines.system import GenerationRequest, System, all_jobs
from vidlab.randomness import generator
from vidlab.text.pretrained import PretrainedEncoder

CONF = Path(__file__).resolve().parents[2] / "conf"
FRAMES, HEIGHT, WIDTH = 9, 16, 32
TEMPLATE = "high quality, high aesthetic, {}"


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return make_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(autouse=True, scope="module")
def quick_collection(release):
    """Systems collect garbage between their parts; what the tests have imported need not be looked through."""
    gc.freeze()
    yield
    gc.unfreeze()


def system_of(*arguments: str) -> System:
    """As ``generate.py`` makes it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("generate", ["system=open_sora_plan", "prompt=x", "sampler.steps=2", *arguments])
    sizes = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH}
    parts = {name: instantiate(cfg[name], name) for name in ("sampler", "guidance")}
    return instantiate(cfg.system, "system")(**sizes, **parts)


def make(
    system: System, *prompts: str, seed=3, num=1, given=None, batch_size=4, precision="32-true"
) -> list[np.ndarray]:
    request = GenerationRequest(all_jobs(prompts, num, seed), given, "cpu", precision, batch_size)
    return system.generate(request, lambda share: None)


def image() -> GivenFrames:
    pixels, known = torch.zeros(3, FRAMES, HEIGHT, WIDTH), torch.zeros(FRAMES, dtype=torch.bool)
    pixels[:, 0] = torch.linspace(-1, 1, HEIGHT)[:, None].expand(3, HEIGHT, WIDTH)
    known[0] = True
    return GivenFrames(pixels, known)


def euler_a_by_hand(release: Path, prompt: str, given: GivenFrames | None, seed=3) -> np.ndarray:
    """The published loop, written out: "Euler a" of k-diffusion on z / alpha, at the trailing timesteps of DDPM."""
    folder = "any93x640x640_i2v" if given else "any93x640x640"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        negative = compose("generate", ["system=open_sora_plan", "prompt=x"]).system.negative_prompt
    encoder = PretrainedEncoder(str(release / "text_encoder"), 512)
    texts = [encoder([TEMPLATE.format(prompt)]), encoder([negative])]
    denoiser = OpenSoraPlan.released(release / folder, LatentShape(4, 3, 2, 4))
    vae = WFVAE.from_published(release / "vae").eval()
    controls = None
    if given is not None:
        from vidlab.clip import Controls

        black = torch.full((1, 3, FRAMES, HEIGHT, WIDTH), -1.0)
        black[0, :, 0] = given.pixels[:, 0]
        mask = torch.ones(1, 4, 3, 2, 4)
        mask[:, :, 0] = 0
        with torch.no_grad():
            controls = Controls(torch.cat([vae.encode(black), mask], 1), 1 - mask[:, :1])

    # zero terminal SNR (Lin et al. 2023, algorithm 1)
    root = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    timesteps = [999, 749, 499, 249]  # 1000 - i 1000 / 4 - 1

    def noise(purpose: str) -> torch.Tensor:
        keyed = generator(seed, f"{prompt}\x1f0", 0, purpose)
        return torch.empty(1, 4, 3, 2, 4).normal_(generator=keyed)

    def answer(z: torch.Tensor, t: int) -> torch.Tensor:
        time = torch.tensor([float(t)])
        full, null = (
            denoiser(DenoiserInput(z, time / 1000, time, text=text, controls=controls)).prediction for text in texts
        )
        return null + 7.5 * (full - null)

    z = noise("initial")
    with torch.no_grad():
        for step, t in enumerate(timesteps):
            alpha = root[t].item()
            sigma = (1 - alpha**2) ** 0.5
            v = answer(z, t)
            x0, epsilon = alpha * z - sigma * v, sigma * z + alpha * v
            if step == len(timesteps) - 1:
                z = x0
                break
            below = root[timesteps[step + 1]].item()
            ratio = (1 - below**2) ** 0.5 / below  # sigma of k-diffusion, infinite at t = 999
            if alpha == 0:
                # the limit of sigma_up^2 = s^2 (S^2 - s^2) / S^2 -> s^2 and sigma_down -> 0
                y = x0 + ratio * noise(f"step{step}")
            else:
                now = sigma / alpha
                up = (ratio**2 * (now**2 - ratio**2) / now**2) ** 0.5
                down = (ratio**2 - up**2) ** 0.5
                y = x0 + down * epsilon + up * noise(f"step{step}")
            z = below * y
        pixels = vae.decode(z)[0]
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).numpy()


@pytest.mark.parametrize("given", [None, image()], ids=["text to video", "image to video"])
def test_a_video_is_the_parts_put_together_by_hand(release, given):
    prompt = "a red circle moves left"
    (video,) = make(system_of(f"system.path={release}", "sampler.steps=4"), prompt, given=given)
    assert video.shape == (FRAMES, HEIGHT, WIDTH, 3) and video.std() > 1
    expected = euler_a_by_hand(release, prompt, given)
    assert np.abs(video.astype(int) - expected.astype(int)).max() <= 1


def test_the_published_settings():
    system = system_of()
    assert isinstance(system, System)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("generate", ["system=open_sora_plan", "prompt=x"])
    assert (cfg.sampler.steps, cfg.guidance.scale, cfg.fps, cfg.system.max_tokens) == (100, 7.5, 18, 512)
    assert (cfg.system.frames, cfg.system.height, cfg.system.width) == (93, 352, 640)
    assert system.template == TEMPLATE and system.sampler.times(system.objective.schedule)[0] == 1


def test_a_seed_gives_the_same_video_whatever_the_batch(release):
    system, prompts = system_of(f"system.path={release}"), ("a red circle", "a blue square moves right")
    together = make(system, *prompts, num=2)
    for a, b in zip(together, make(system, *prompts, num=2, batch_size=3), strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
    again = make(system, *prompts, num=2)
    assert all(np.array_equal(a, b) for a, b in zip(together, again, strict=True))
    assert len({video.tobytes() for video in together + make(system, *prompts, num=2, seed=4)}) == 8


def test_the_image_the_prompt_and_the_negative_prompt_matter(release):
    system, prompt = system_of(f"system.path={release}"), "a red circle"
    (with_image,) = make(system, prompt, given=image())
    (without,) = make(system_of(f"system.path={release}", f"system.denoiser={release}/any93x640x640_i2v"), prompt)
    (other_text,) = make(system, "a blue square", given=image())
    (other_negative,) = make(system_of(f"system.path={release}", "system.negative_prompt=''"), prompt, given=image())
    videos = [with_image, without, other_text, other_negative]
    assert len({video.tobytes() for video in videos}) == 4


def test_chunks_do_not_change_the_video(release):
    whole = make(system_of(f"system.path={release}", "system.chunk=null"), "a circle", given=image())
    pieces = make(system_of(f"system.path={release}", "system.chunk=1"), "a circle", given=image())
    assert np.abs(whole[0].astype(int) - pieces[0].astype(int)).max() <= 1


@pytest.mark.parametrize("given", [None, image()], ids=["text to video", "image to video"])
def test_one_part_is_in_memory_at_a_time(release, given, monkeypatch):
    alive: list[weakref.ref] = []
    order: list[str] = []

    def watch(kind: type) -> None:
        build = kind.__init__

        def watched(self, *args, **kwargs):
            assert [ref() for ref in alive if ref() is not None] == [], f"{kind.__name__} while another part is there"
            build(self, *args, **kwargs)
            alive.append(weakref.ref(self))
            order.append(kind.__name__)

        monkeypatch.setattr(kind, "__init__", watched)

    for kind in (PretrainedEncoder, OpenSoraPlan, WFVAE):
        watch(kind)
    make(system_of(f"system.path={release}"), "a red circle", "a blue circle", given=given, batch_size=1)
    vae_first = ["WFVAE"] if given else []
    assert order == ["PretrainedEncoder", *vae_first, "OpenSoraPlan", "WFVAE"]
    assert all(ref() is None for ref in alive)


def test_large_weights_are_bfloat16_where_that_is_asked_for(release, monkeypatch):
    seen = []
    forward = OpenSoraPlan.forward

    def watched(self, input):
        seen.append({p.dtype for p in self.parameters()})
        return forward(self, input)

    monkeypatch.setattr(OpenSoraPlan, "forward", watched)
    (exact,) = make(system_of(f"system.path={release}"), "a red circle", given=image())
    (rough,) = make(system_of(f"system.path={release}"), "a red circle", given=image(), precision="bf16-mixed")
    assert seen[0] == {torch.float32} and seen[-1] == {torch.bfloat16}
    assert np.abs(exact.astype(int) - rough.astype(int)).mean() < 12


def test_parts_may_be_anywhere(release, tmp_path):
    for name in ("any93x640x640", "vae"):
        shutil.copytree(release / name, tmp_path / f"my_{name}")
    write_text_encoder(tmp_path / "elsewhere" / "mt5")
    shutil.copy(release / "text_encoder" / "model.safetensors", tmp_path / "elsewhere" / "mt5")
    tokenizer = tmp_path / "elsewhere" / "tokenizer"  # as diffusers lays folders out
    tokenizer.mkdir()
    for file in (tmp_path / "elsewhere" / "mt5").glob("tokenizer*"):
        file.rename(tokenizer / file.name)
    apart = system_of(
        f"system.denoiser={tmp_path}/my_any93x640x640",
        f"system.vae={tmp_path}/my_vae",
        f"system.text_encoder={tmp_path}/elsewhere/mt5",
    )
    together = system_of(f"system.path={release}")
    assert np.array_equal(*make(apart, "a circle"), *make(together, "a circle"))


@pytest.fixture
def copy(release, tmp_path) -> Path:
    return shutil.copytree(release, tmp_path / "copy")


def change(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def refused(message: str, *arguments: str, given=None, prompt="a circle") -> None:
    with pytest.raises(UserError, match=message):
        make(system_of(*arguments), prompt, given=given)


@pytest.mark.parametrize("name", ["any93x640x640", "vae", "text_encoder"])
def test_a_missing_folder_is_named_with_what_is_expected(copy, name):
    path = f"system.path={copy}"
    shutil.rmtree(copy / name)
    refused(rf"{name}.* is not among its folders \(there: any93x640x640.*set system\.\w+=<its folder>", path)
    (copy / name).mkdir()
    refused(r"needs the .* \(config.json and \*.safetensors\)", path)


def test_a_folder_that_is_not_set_or_not_there():
    refused(r"system.path is not set: give the folder of the release, or system.denoiser=")
    refused(r"system.denoiser=.*there is no such folder", "system.path=/nowhere")


def test_the_image_to_video_denoiser_is_needed_for_images(copy):
    path = f"system.path={copy}"
    refused(
        "is a text-to-video denoiser and takes no image", path, f"system.denoiser={copy}/any93x640x640", given=image()
    )
    shutil.rmtree(copy / "any93x640x640_i2v")
    refused("any93x640x640_i2v with the image-to-video denoiser is not among its folders", path, given=image())


def test_folders_of_other_models(copy):
    path = f"system.path={copy}"
    refused("is of the class WFVAEModel; a denoiser of", path, f"system.denoiser={copy}/vae")
    change(copy / "vae", _class_name="AutoencoderKL")
    refused("is of the class AutoencoderKL; the system's autoencoder is a WFVAEModel", path)
    shutil.rmtree(copy / "vae")
    write_vae(copy / "vae", latent_dim=8)
    refused("makes latents of 8 channels, and .*any93x640x640 reads 4", path)
    shutil.rmtree(copy / "vae")
    write_vae(copy / "vae")
    change(copy / "text_encoder", d_model=32)
    refused("gives features of width 32, and .*any93x640x640 reads 16", path)
    change(copy / "text_encoder", model_type="t5")
    refused("is of the type t5; Open-Sora Plan v1.3 was trained with mt5", path)


def test_a_tokenizer_is_needed(copy):
    for file in (copy / "text_encoder").glob("tokenizer*"):
        file.unlink()
    refused("No tokenizer .* is in .*text_encoder or .*tokenizer. Put it there", f"system.path={copy}")


def test_a_sentencepiece_tokenizer_names_its_package(copy, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "sentencepiece" else find(name, *a)
    )
    (copy / "text_encoder" / "tokenizer.json").rename(copy / "text_encoder" / "spiece.model")
    with pytest.raises(MissingPackageError, match=r"is a SentencePiece tokenizer, .* pip install sentencepiece"):
        make(system_of(f"system.path={copy}"), "a circle")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"frames": 10}, "frames=10: it must be 1 plus a multiple of 4. Use frames=9 or frames=13"),
        ({"height": 40}, "height=40: it must be a multiple of 16. Use height=32 or height=48"),
        ({"width": 8}, "width=8: it must be a multiple of 16. Use width=16 or width=32"),
        ({"width": 0}, "width=0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(release, sizes, message):
    from dataclasses import replace

    with pytest.raises(UserError, match=message):
        make(replace(system_of(f"system.path={release}"), **sizes), "a circle")


def test_prompts_and_templates(release):
    refused("has 37 tokens; this text encoder reads at most 24", f"system.path={release}", "system.max_tokens=24",
            "system.negative_prompt=blurry", prompt="a red circle " * 10)  # fmt: skip
    with pytest.raises(UserError, match=r"system.template='nothing' must hold \{\} once"):
        system_of("system.template=nothing")
