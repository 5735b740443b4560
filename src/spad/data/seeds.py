"""Reproducible seeds: of one object, and of generators seeded by any values."""

import hashlib
from typing import Any

import torch


def seeded(*what: Any) -> torch.Generator:
    """CPU random generator seeded by the values `what`, such as a seed and a step."""
    # torch uses only 32 bits to seed its CPU generator.
    digest = hashlib.sha256(" ".join(map(str, what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def object_seed(seed: int, uid: str) -> int:
    """Seed of one object, from its id and the run's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{uid}".encode()).digest()[:8], "big")
