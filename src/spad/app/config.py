"""Settings of `spad app`. Imports nothing heavy."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from spad.settings import Count, checked, flag

PASSWORD = "SPAD_APP_PASSWORD"


@dataclass(frozen=True)
@checked
class AppConfig:
    """Open a page that places cameras, shows all views while they are drawn and builds 3D models.

    It listens on this machine alone unless --host says otherwise, and asks nothing of others.
    """

    model: str = "mini"
    """Name of a model (see `spad models`) or a model folder."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's own need a password."""
    port: Annotated[int, Interval(ge=0, le=65535)] = 7860
    """Port to listen on; 0 takes a free one."""
    browser: bool = True
    """Open the page in a browser."""
    password: str | None = None
    """Password that the browser asks for; any user name goes with it. Default: that of the
    environment variable SPAD_APP_PASSWORD, if set, which other users of the machine cannot see."""
    waiting: Count = 8
    """Number of requests that may wait; more are refused until one is done."""
    device: str | None = None
    """Device, such as "cuda" or "cpu". Default: the fastest that there is."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; auto is bfloat16 on devices that are fast at it, else float32."""

    def __post_init__(self) -> None:
        if self.password == "":
            raise ValueError(f"expected {flag('password')} with a character or more, got none")
        if not self.is_local and self.secret is None:
            raise ValueError(
                f"expected a {flag('password')} with {flag('host')} {self.host}, since others can "
                f"reach the page there; give one, best as the environment variable {PASSWORD}"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the page."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def secret(self) -> str | None:
        """The password from the flag or the environment."""
        return self.password or os.environ.get(PASSWORD) or None
