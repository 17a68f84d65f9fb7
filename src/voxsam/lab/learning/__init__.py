"""Learning from a project: its cases as training samples, a check of the learned model, and runs that resume."""

from __future__ import annotations

from voxsam.lab.learning.learn import learn

__all__ = ["learn"]
