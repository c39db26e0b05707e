"""Folders as people bring them: a tiny model of an architecture that transformers knows, its tokenizer, and text."""

import json
from pathlib import Path

import torch

SAID = (
    "A small house stood by the river. Its door was blue, and its windows were clean.\n"
    "Nobody had lived in it for years; the garden had grown over the path.\n"
    "Ein Häuschen stand am Fluß, façade bleue: 小さな家は川のそばに立っていた。 Привет, дом! 🏡🚪\n"
)
WIDTH, VOCABULARY, END = 32, 320, "<|endoftext|>"
_GATED = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None,
}  # fmt: skip
ARCHITECTURES = {  # class of the configuration, its fields
    "llama": ("LlamaConfig", _GATED | {"tie_word_embeddings": False}),
    "gpt2": ("GPT2Config", {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 4}),
    "qwen2": ("Qwen2Config", _GATED | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", _GATED | {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", _GATED | {"head_dim": 8}),
    "mixtral": ("MixtralConfig", _GATED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mamba": (
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0},
    ),
    "rwkv": (
        "RwkvConfig",
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "attention_hidden_size": WIDTH,
         "context_length": 64},
    ),
}  # fmt: skip


def text(lines: int = 120) -> str:
    """Varied enough that few windows of it are alike."""
    return "".join(f"{n * n % 97} {SAID.splitlines()[n % 3]}\n" for n in range(lines))


def tokenizer():
    """A byte-level BPE of VOCABULARY pieces as `tokenizers` trains it; token 0 ends a document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text()], trainer)
    return made


def module(name: str, seed: int = 0, dtype: torch.dtype = torch.float32):
    """A module of ARCHITECTURES whose logits depend on its input about as those of a trained one do."""
    import transformers

    kind, fields = ARCHITECTURES[name]
    config = getattr(transformers, kind)(**fields, bos_token_id=0, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.data.mul_(4)
    return made.to(dtype).eval()


def folder(path: Path, name: str, dtype: torch.dtype = torch.float32) -> Path:
    """What save_pretrained of a model and of its tokenizer leave at `path`."""
    module(name, dtype=dtype).save_pretrained(path)
    tokenizer().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, "bos_token": None}))
    return path
