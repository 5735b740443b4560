"""Needs a package that is not installed, as the release's needs pytorch3d."""

import a_package_that_nobody_has  # noqa: F401
