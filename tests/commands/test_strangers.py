"""Folders as strangers bring them: each kind of tokenizer, each way to lay weights out, by the commands of the README."""

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import pgolf
from pgolf.cli import main
from pgolf.data import tokenizer_files
from tests import folders
from tests.data.test_tokenizer_files import ranked

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, which are none of ours
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
LINES = folders.text(200).splitlines()
PIECES = 420


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return result


def sentencepiece_model(folder: Path) -> None:
    """tokenizer.model alone, as Llama 2's and Gemma's first folders had it."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=str(folder / "tokenizer"), vocab_size=400, model_type="bpe",
        byte_fallback=True, minloglevel=3,
    )  # fmt: skip


def vocabulary_and_merges(folder: Path) -> None:
    folders.tokenizer().model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))


def ranks(folder: Path) -> None:
    ranked(folder / "cl100k_base.tiktoken", tokenizer_files.CL100K)


def unigram(folder: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.pre_tokenizer, made.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    how = tokenizers.trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(LINES, how)
    made.save(str(folder / "tokenizer.json"))


def wordpiece(folder: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer, made.decoder = tokenizers.pre_tokenizers.BertPreTokenizer(), tokenizers.decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        LINES, tokenizers.trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.save(str(folder / "tokenizer.json"))


def sharded(folder: Path) -> None:
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="40kB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pickled_shards(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    parts = {name: f"pytorch_model-{1 + i % 2:05}-of-00002.bin" for i, name in enumerate(state)}
    for part in set(parts.values()):
        torch.save({name: state[name] for name in state if parts[name] == part}, folder / part)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    (folder / "model.safetensors").unlink()


def of_older_days(folder: Path) -> None:
    """torch_dtype in config.json, and settings of generation beside it."""
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.7}))


def as_it_is(folder: Path) -> None:
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) == ("tied" not in folder.name)


@pytest.mark.parametrize(
    ("tokenizer", "weights", "tied"),
    [
        (sentencepiece_model, sharded, False),
        (vocabulary_and_merges, pickled, False),
        (ranks, pickled_shards, False),
        (unigram, of_older_days, True),
        (wordpiece, as_it_is, True),
    ],
)
def test_a_strangers_folder_in_the_commands_of_the_readme(tokenizer, weights, tied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = folders.ARCHITECTURES["llama"][1] | {"vocab_size": PIECES + 30, "tie_word_embeddings": tied}
    theirs = tmp_path / ("tied" if tied else "own")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**fields, bos_token_id=1))
    model.to(torch.bfloat16).save_pretrained(theirs)
    tokenizer(theirs)
    weights(theirs)
    (tmp_path / "notes.txt").write_text("\n".join(LINES), encoding="utf-8")
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES[:30]))
    run(
        "pack",
        theirs,
        "--budget",
        "30kB",
        "--calib",
        "notes.txt",
        "--tokens",
        "128",
        "--seq-len",
        "16",
        "-o",
        "m.pgolf",
    )
    scored = run("eval", "m.pgolf", "--data", "held.jsonl", "--tokenizer", theirs, "--seq-len", "32", "--json")
    unscored = sum(len(line.encode()) for line in LINES[:30]) - json.loads(scored.stdout)["bytes"]
    assert unscored == 0 or (tokenizer is ranks and unscored < 8)  # ranks alone name no token that begins a text
    run("unpack", "m.pgolf", "-o", "small", "--like", theirs, "--format", "pgolf-hf")
    made, told = transformers.AutoModelForCausalLM.from_pretrained("small", output_loading_info=True)
    assert not told["missing_keys"]
    assert made.dtype == torch.bfloat16
    assert {t.dtype for t in pgolf.load("m.pgolf").values()} == {torch.bfloat16}
    assert (made.lm_head.weight is made.model.embed_tokens.weight) == tied
    assert (made.generation_config.temperature == 0.7) == (weights is of_older_days)
    others = {path.name for path in theirs.iterdir() if path.suffix not in {".safetensors", ".bin"}}
    assert {path.name for path in Path("small").iterdir()} == {n for n in others if ".index." not in n} | {
        "model.pgolf"
    }


def test_weights_without_a_configuration_say_what_to_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders.folder(tmp_path / "llama", "llama")
    (tmp_path / "llama" / "config.json").unlink()
    (tmp_path / "notes.txt").write_text("\n".join(LINES), encoding="utf-8")
    result = CliRunner().invoke(main, ["pack", "llama", "--budget", "30kB", "--calib", "notes.txt"])
    assert result.exit_code == 2
    assert "no config.json in llama says which model it is" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_tokenizer_that_skips_characters_is_told_with_the_score(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders.folder(tmp_path / "llama", "llama")
    letters = {letter: number for number, letter in enumerate("abcdefghij")}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save("letters.json")
    Path("held.txt").write_text("abc def ghij\n" * 20 + "xyz" * 10, encoding="utf-8")
    how = "--tokenizer", "letters.json", "--seq-len", "32"
    assert (
        "makes no token of about 10.34% of the text's characters"
        in run("eval", "llama", "--data", "held.txt", *how).output
    )
