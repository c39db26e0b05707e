"""The training run: optimizers, steps, ranks, what is saved, resumed, logged and packed at its end."""
