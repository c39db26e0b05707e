"""Set before torch is imported: waiting OpenMP threads that spin make a shared machine several times slower."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist already uses the cores

import torch
from hypothesis import settings

if not torch.cuda.is_available():  # kernels then run in Triton's interpreter, chosen when their files are imported
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("pgolf", deadline=None, derandomize=True)
settings.load_profile("pgolf")
