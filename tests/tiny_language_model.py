"""Language models of random weights in the real file formats, small enough for tests."""

from pathlib import Path

WORDS = ["a", "red", "blue", "square", "circle", "moves", "left", "right", "on", "black", "slowly", "small", "large"]


def save_tiny(folder: Path, chat: bool = False, seed: int = 0) -> Path:
    """A Llama of two layers with its tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate(["<unk>", "<s>", "</s>", "<user>", "\n", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    words.decoder = decoders.Fuse()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, additional_special_tokens=["<user>"], **names)
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    if chat:
        tokenizer.chat_template = "{% for m in messages %}<user> {{ m['content'] }}{% endfor %}{{ '\\n' }}"
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        initializer_range=0.3,  # so that LoRA, which leaves the output layer alone, can make an answer certain
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
