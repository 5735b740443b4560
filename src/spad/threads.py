"""How the threads of a computation wait for each other. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

import psutil

# A threading library reads it once, when torch starts.
WAIT_POLICY = "OMP_WAIT_POLICY"
# Share of the cores that others use, from which on sleeping threads are faster.
_BUSY = 0.2
_MEASURED_S = 0.2


def set_wait_policy(environment: MutableMapping[str, str]) -> None:
    """Let threads sleep while they wait if other work uses the cores.

    Threads that spin react at once, which makes trainings and 3D models about a quarter faster; but
    on shared cores they take time from those they wait for. A policy that the user has set stays.

    Args:
        environment: that of the process, before torch is imported.
    """
    if WAIT_POLICY not in environment and psutil.cpu_percent(_MEASURED_S) / 100 > _BUSY:
        environment[WAIT_POLICY] = "passive"


def waiting() -> str:
    """What threads of this process do while they wait, and why."""
    if os.environ.get(WAIT_POLICY, "").lower() == "passive":
        return "sleep while they wait, which is faster where other work uses the cores"
    return "spin while they wait, which is faster where no other work uses the cores"
