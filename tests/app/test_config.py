"""Settings of `spad app`: what others can reach has a password."""

import pytest

from spad.app.config import PASSWORD, AppConfig


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_this_machine_alone_needs_no_password(host):
    assert AppConfig(host=host).secret is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.3", "example.org"])
def test_others_need_one(host, monkeypatch):
    with pytest.raises(ValueError, match=f"password with host {host}"):
        AppConfig(host=host)
    assert AppConfig(host=host, password="open").secret == "open"
    monkeypatch.setenv(PASSWORD, "sesame")
    assert AppConfig(host=host).secret == "sesame"


@pytest.mark.parametrize(
    ("field", "value"), [("port", -1), ("port", 65536), ("waiting", 0), ("password", "")]
)
def test_what_cannot_be_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        AppConfig(**{field: value})
