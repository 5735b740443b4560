"""How the threads of a training wait for each other. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

import psutil

# A threading library reads it once, when torch starts.
WAIT_POLICY = "OMP_WAIT_POLICY"
# Share of the cores that others use, from which on sleeping threads are faster.
_BUSY = 0.2
_MEASURED_S = 0.5


def set_wait_policy(environment: MutableMapping[str, str]) -> str:
    """Let threads sleep while they wait if other work uses the cores, and say what they do.

    Threads that spin react at once, which makes a training about a quarter faster; but on shared
    cores they take time from those they wait for. A policy that the user has set stays.

    Args:
        environment: that of the process, before torch is imported.
    """
    own = environment.get(WAIT_POLICY)
    if own is not None:
        return f"wait as {WAIT_POLICY}={own} says"
    used = psutil.cpu_percent(_MEASURED_S) / 100
    if used > _BUSY:
        environment[WAIT_POLICY] = "passive"
        return f"sleep while they wait, since other work uses {used:.0%} of the cores"
    return f"spin while they wait, since other work uses only {used:.0%} of the cores"


def waiting() -> str:
    """What threads of this process do while they wait."""
    policy = os.environ.get(WAIT_POLICY, "").lower()
    return "sleep while they wait" if policy == "passive" else "spin while they wait"
