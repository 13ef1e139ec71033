"""A tiny Open-Sora Plan v1.3 in exactly the published form: the same files, names and fields, with small sizes."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from vidlab.autoencoders.wfvae import WFVAE
from vidlab.autoencoders.wfvae.kernels import wavelet_kernels
from vidlab.backbones.open_sora_plan import OpenSoraPlan
from vidlab.backbones.open_sora_plan_release import write_release
from vidlab.clip import LatentShape
from vidlab.layers.layouts import GroupSkip, LayerPlan, SingleSkip

TEXT_WIDTH = 16
WORDS = ("high", "quality", "aesthetic", "a", "red", "blue", "circle", "square", "moves", "left", "right", "blurry")
DENOISER = {
    "_diffusers_version": "0.30.2", "activation_fn": "gelu-approximate", "attention_bias": True,
    "attention_head_dim": 12, "caption_channels": TEXT_WIDTH, "cross_attention_dim": 24,
    "double_self_attention": False, "dropout": 0.0, "in_channels": 4, "interpolation_scale_h": 1.0,
    "interpolation_scale_t": 1.0, "interpolation_scale_w": 1.0, "norm_elementwise_affine": False, "norm_eps": 1e-06,
    "num_attention_heads": 2, "num_layers": 4, "only_cross_attention": False, "out_channels": 4, "patch_size": 2,
    "patch_size_t": 1, "sample_size": [80, 80], "sample_size_t": 24, "sparse1d": True, "sparse_n": 2,
    "upcast_attention": False,
}  # fmt: skip
VAE = {
    "_class_name": "WFVAEModel", "_diffusers_version": "0.30.2", "attention_type": "AttnBlock3DFix", "base_channels": 8,
    "connect_res_layer_num": 2, "decoder_energy_flow_hidden_size": 4, "decoder_num_resblocks": 1, "dropout": 0.0,
    "encoder_energy_flow_hidden_size": 4, "encoder_num_resblocks": 1, "l1_dowmsample_block": "Downsample",
    "l1_downsample_wavelet": "HaarWaveletTransform2D", "l1_upsample_block": "Upsample",
    "l1_upsample_wavelet": "InverseHaarWaveletTransform2D", "l2_dowmsample_block": "Spatial2xTime2x3DDownsample",
    "l2_downsample_wavelet": "HaarWaveletTransform3D", "l2_upsample_block": "Spatial2xTime2x3DUpsample",
    "l2_upsample_wavelet": "InverseHaarWaveletTransform3D", "latent_dim": 4, "norm_type": "layernorm",
    "scale": [0.18215] * 4, "shift": [0, 0, 0, 0], "t_interpolation": "trilinear", "use_attention": True,
}  # fmt: skip


def make_release(folder: Path) -> Path:
    """The three folders of the authors, and the text encoder's."""
    torch.manual_seed(5)
    write_denoiser(folder / "any93x640x640", "OpenSoraT2V_v1_3", ())
    write_denoiser(folder / "any93x640x640_i2v", "OpenSoraInpaint_v1_3", (4, 4))
    write_vae(folder / "vae")
    write_text_encoder(folder / "text_encoder")
    return folder


def write_denoiser(folder: Path, name: str, controls: tuple[int, ...]) -> None:
    """Two shards with an index, as released. Layers 0 and 1 are full, the others sparse."""
    plan = LayerPlan([SingleSkip(2), GroupSkip(2)], 2, 0)
    model = OpenSoraPlan(
        LatentShape(4, 2, 4, 4),
        TEXT_WIDTH,
        plan,
        width=24,
        depth=4,
        heads=2,
        patch=(1, 2, 2),
        control_channels=controls,
    )
    for key, value in model.named_parameters():
        if key.endswith("1.weight") and key.startswith("pos_embed_"):
            torch.nn.init.normal_(value, std=0.3)  # a trained model hears its controls
    total = sum(p.nbytes for p in model.parameters())
    extra = {"vae_scale_factor_t": 4} if controls else {}
    write_release(model.state_dict(), folder, total * 2 // 3, {"_class_name": name} | DENOISER | extra)
    assert len(list(folder.glob("*.safetensors"))) == 2


def write_vae(folder: Path, **changes: object) -> None:
    """One file, with the wavelet kernels that the authors' class stores as parameters."""
    folder.mkdir(parents=True)
    sizes = {"latent_channels": 4, "width": 8, "encoder_energy": 4, "decoder_energy": 4, "encoder_blocks": 1,
             "decoder_blocks": 1, "connect_blocks": 2, "compat": True}  # fmt: skip
    model = WFVAE(**sizes)
    state = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("latent_")}
    save_file(state | wavelet_kernels(0.3536), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(VAE | changes))


def write_text_encoder(folder: Path) -> None:
    """mT5 with a Unigram tokenizer, which is what a SentencePiece model of mT5 becomes."""
    from transformers import MT5Config, MT5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), (",", -3.0)]
    pieces += [(f"▁{word}", -4.0) for word in WORDS]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    config = MT5Config(vocab_size=32, d_model=TEXT_WIDTH, d_kv=4, d_ff=32, num_layers=2, num_heads=2)
    MT5EncoderModel(config).save_pretrained(folder)
