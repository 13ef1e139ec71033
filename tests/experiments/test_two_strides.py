"""STIV's long videos: one model is trained to make key frames and what is between them, and told which."""

from pathlib import Path

from hydra import compose, initialize_config_dir

from vidlab.conditioning.base import TrainingClips
from vidlab.lab.compose import accepted, build_data, build_module

CONF = Path(__file__).parents[2] / "conf"
SMALL = (
    "data.frames=4", "data.key_frame_stride=3", "data.source.frames=10", "data.height=16", "data.width=16",
    "data.source.train_clips=8", "data.source.val_clips=2", "data.val_clips=2", "data.batch_size=2",
    "data.num_workers=0", "model.backbone.width=32", "model.backbone.depth=1", "text_encoder.width=16",
    "text_encoder.heads=2", "conditioning.image_dropout=0", "sampler.steps=1",
)  # fmt: skip


def test_steps_take_turns_and_a_video_is_made_of_both(make_trainer):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["experiment=stiv/long_laptop", *SMALL])
    accepted(cfg)
    assert cfg.conditioning.stride == 1
    module, data = build_module(cfg), build_data(cfg)
    data.prepare_data()
    data.setup("fit")
    module.configure_model()
    told: list[float] = []
    module.denoiser.register_forward_pre_hook(lambda _, given: told.append(given[0].micro["sampling_stride"][0].item()))
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(4), strict=False)]
    make_trainer(max_steps=4).fit(module, batches)
    assert told == [1.0, 3.0, 1.0, 3.0]
    for batch, known in zip(batches, ([1, 0, 0, 1], [1, 0, 0, 0]), strict=False):
        latents = module.autoencoder.encode(batch.pixels)
        clips = TrainingClips(batch.pixels, latents, batch.draw(0), 0, strides=batch.strides)
        assert module.conditioning.for_training(clips, module.autoencoder).known.mask.flatten(1).tolist() == [known] * 2
    told.clear()
    video = module.eval().pipeline(["a red square"], interpolate=True, seed=0)
    assert video.frames.shape == (10, 16, 16, 3)
    assert told == [3.0, 1.0, 1.0, 1.0]  # the key frames, then three gaps
