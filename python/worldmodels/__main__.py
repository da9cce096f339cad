"""`python -m worldmodels` is the `worldmodels` command."""

from worldmodels.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
