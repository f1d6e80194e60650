"""Imported first, it keeps torch out of a process."""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]
