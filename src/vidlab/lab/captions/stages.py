"""The stages of this room by name, for ``curate.py``."""

from collections.abc import Callable, Mapping

from omegaconf import DictConfig

from vidlab.lab.captions.caption import run_captions
from vidlab.lab.captions.dsg import run_dsg
from vidlab.lab.captions.refiner import run_pairs, run_refiner

TEXT_STAGES: Mapping[str, Callable[[DictConfig], str]] = {
    "caption": run_captions,
    "dsg": run_dsg,
    "pairs": run_pairs,
    "refiner": run_refiner,
}
