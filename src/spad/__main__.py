"""`python -m spad`."""

from spad.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
