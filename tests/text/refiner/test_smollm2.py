"""The real small model: SmolLM2-135M-Instruct as GGUF, from its pinned package."""

import pytest

from vidlab.text.refiner.fine_tuning import FineTuning
from vidlab.text.refiner.language_model import load_language_model
from vidlab.text.refiner.pairs import PromptPair
from vidlab.text.refiner.refiner import PromptRefiner

PAIRS = [
    PromptPair(f"{color} {shape}", f"a {color} {shape} slowly moves left on a black background")
    for color in ("red", "blue")
    for shape in ("square", "circle")
]


@pytest.mark.network
def test_smollm2_is_fine_tuned_from_its_gguf_file(tmp_path):
    language = load_language_model("asset:smollm2")
    assert sum(parameter.numel() for parameter in language.model.parameters()) == 134_515_008
    assert language.tokenizer.decode(language.conversation("hello")).startswith("<|im_start|>system")
    tuning = FineTuning(rank=8, alpha=16, lr=2e-3, epochs=8, batch_size=4, chat=False)
    losses = tuning.run(language, PAIRS, tmp_path / "refiner")
    assert losses[-1] < losses[0] / 3
    (found,) = PromptRefiner.load(str(tmp_path / "refiner"), max_new_tokens=16).refine(["red square"])
    assert found.refined == "a red square slowly moves left on a black background"
