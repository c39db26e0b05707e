"""A small language model and the checkpoints that trainers would write of it, each as its trainer lays it out."""

import random
from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from tests.helpers import generator

MODEL = '''
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x + self.gain * self.down(torch.relu(self.up(x)))

class GPT(nn.Module):
    """Tied head, two blocks."""
    def __init__(self, width=48):
        super().__init__()
        self.wte = nn.Embedding(64, width)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.lm_head = nn.Linear(width, 64, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(x)

class Untied(GPT):
    def __init__(self):
        super().__init__()
        self.lm_head.weight = nn.Parameter(torch.zeros(64, 48))

class Masked(GPT):
    """With a causal mask and rotary tables among its buffers."""
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((64, 64), float("-inf")).triu(1))
        self.register_buffer("cos", torch.outer(torch.arange(64.0), torch.arange(1.0, 49.0)).cos())

class Wrapping(nn.Module):
    """What it wraps is really called module."""
    def __init__(self):
        super().__init__()
        self.module = GPT()
        self.model = Block(48)

    def forward(self, ids):
        return self.module(ids)

class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(96, 64), nn.Linear(64, 64)
'''


def classes():
    """The classes of MODEL by name."""
    names = {}
    exec(compile(MODEL, "zoo.py", "exec"), names)
    return names


def made(name="GPT", seed=0):
    """One of them, with random weights of its own generator."""
    module, g = classes()[name](), generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.2)
    return module


def plain(name="GPT", seed=0):
    """Its state dict, tensors of their own."""
    return OrderedDict((n, t.detach().clone()) for n, t in made(name, seed).state_dict().items())


def renamed(state, prefix):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def adam(module):
    """The state dict of an Adam that made a step."""
    optimizer = torch.optim.AdamW(module.parameters())
    sum(p.square().sum() for p in module.parameters()).backward()
    optimizer.step()
    return optimizer.state_dict()


def with_optimizer(seed=0):
    """(state dict from before the step, optimizer state)."""
    module = made(seed=seed)
    state = OrderedDict((n, t.detach().clone()) for n, t in module.state_dict().items())
    return state, adam(module)


def randomness():
    """What trainers keep to go on with the same random numbers; the global generators are only read."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - the legacy one is what they keep
        "torch": torch.get_rng_state(),
        "cuda": [torch.get_rng_state(), torch.get_rng_state()],
    }


class Nested(nn.Module):
    """As FSDP and activation checkpointing name what they wrap."""

    def __init__(self, inner, attribute):
        super().__init__()
        self.add_module(attribute, inner)


def wrapper(name, attribute):
    """A class of a wrapper's name that holds what it wraps under `attribute`."""
    return type(name, (Nested,), {"__init__": lambda self, inner: Nested.__init__(self, inner, attribute)})
