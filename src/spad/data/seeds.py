"""Random numbers that repeat: a seed for every object, and generators seeded by anything."""

import hashlib
from typing import Any

import torch


def seeded(*what: Any) -> torch.Generator:
    """CPU random generator that depends on nothing but `what`, such as a seed and a step."""
    # torch seeds its CPU generator from 32 bits alone, so everything is hashed into those.
    digest = hashlib.sha256(" ".join(map(str, what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def object_seed(seed: int, uid: str) -> int:
    """A seed for one object that depends on nothing but its id and the run's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{uid}".encode()).digest()[:8], "big")
