"""Settings shared by every test: one thread, no network, nothing written outside the test's own folder."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("rlpheads", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("rlpheads")
