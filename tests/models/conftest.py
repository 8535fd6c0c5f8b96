"""One thread: networks this small gain nothing from more, and lose a lot where the machine is busy."""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
