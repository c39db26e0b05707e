"""Tokens and text: shards on disk, tokenizers and the bytes that their tokens stand for, corpora."""
