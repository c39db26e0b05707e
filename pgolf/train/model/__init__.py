"""Our GPT: its configuration, its parts, and how a checkpoint makes it again."""

from pgolf.common import moved

__getattr__ = moved.names(__name__, {"GPT": "gpt", "GPTConfig": "config"})
