"""Other people's checkpoints, folders and modules, read safely into one type."""
