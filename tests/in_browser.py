"""What tests of pages share."""

import pytest


def wait_until(page, condition: str) -> None:
    """As `page.wait_for_function`, whose later tries the page's own security policy forbids."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    pytest.fail(f"never came true: {condition}")
