"""A project: a folder of plain files in which scans are worked through; a model learns from it (docs/project.md)."""

from __future__ import annotations

from voxsam.project.project import Project

__all__ = ["Project"]
