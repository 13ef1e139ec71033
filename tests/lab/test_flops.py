import numpy as np
import pytest
from lightning.pytorch import LightningDataModule

from vidlab.data.samplers.assignment import Assignment, Bucket
from vidlab.data.samplers.bucket_plan import BucketPlan
from vidlab.data.samplers.interleaved import InterleavedPlan
from vidlab.data.samplers.single_bucket import SingleBucketPlan
from vidlab.lab.flops import flops_per_step, plan_flops


def test_one_shape(make_module):
    module = make_module()
    assert flops_per_step(module, LightningDataModule(), 5, 3) == 15 * module.cost().training_flops


def test_the_mean_over_an_epoch_of_buckets(make_module):
    """Two ranks: 3 steps of 4 and one of 1, and 5 steps of 2, by hand."""
    module = make_module()
    large, small = module.cost((4, 8, 8)).training_flops, module.cost((2, 8, 8)).training_flops
    codes = np.repeat([0, 1], [26, 20]).astype(np.int16)
    plan = BucketPlan(Assignment((Bucket(2, 8, 8), Bucket(4, 8, 8)), codes), [4, 2], 0, 2, "smaller")
    assert plan_flops(plan, module) == pytest.approx((26 * small + 20 * large) / 9)


def test_images_count_by_their_share_of_steps(make_module):
    module, codes = make_module(), np.zeros(8, np.int16)
    video, image = (SingleBucketPlan(Assignment((Bucket(frames, 8, 8),), codes), 2, 0) for frames in (4, 2))
    expected = 2 * (8 * module.cost().training_flops + module.cost((2, 8, 8)).training_flops) / 9
    assert plan_flops(InterleavedPlan(video, image, 9), module) == pytest.approx(expected)
