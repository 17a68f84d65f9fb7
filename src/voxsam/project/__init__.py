"""A project: a folder of plain files for working through scans, from which a model learns (docs/project.md)."""

from __future__ import annotations

from voxsam.project.project import Project

__all__ = ["Project"]
