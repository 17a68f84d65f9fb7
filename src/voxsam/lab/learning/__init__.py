"""Learning from a project: its cases as training samples, the check of what was learned, and a run that goes on."""

from __future__ import annotations

from voxsam.lab.learning.learn import learn

__all__ = ["learn"]
