"""Our GPT: its configuration, its parts, and how a checkpoint makes it again."""
