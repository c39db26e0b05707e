"""The training run: optimizers, steps, ranks, what is saved, resumed, logged and packed at its end."""

from pgolf.common import moved

__getattr__ = moved.names(__name__, {"Trainer": "trainer", "StepInfo": "trainer"})
