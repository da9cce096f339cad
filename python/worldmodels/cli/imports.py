"""Import of PyTorch that Ctrl-C cannot abort."""

from __future__ import annotations

from worldmodels.support.processes import defer_sigint


def import_torch() -> None:
    """Import PyTorch. A KeyboardInterrupt in its C++ initialization would abort the process."""
    with defer_sigint():
        import torch  # noqa: F401
