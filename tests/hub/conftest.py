"""What tests of models from elsewhere share."""

import pytest

from parity import Golden, converted_tiny


@pytest.fixture(scope="module")
def golden(shared_dir) -> Golden:
    return Golden(shared_dir / "golden")


@pytest.fixture(scope="module")
def tiny(golden, tmp_path_factory):
    """The folder that the tiny checkpoint becomes."""
    return converted_tiny(golden, tmp_path_factory.mktemp("converted"))
