"""Registers every compared system: one line for each file of them. Heavy libraries are imported by their methods."""

import voxsam.systems.common_loop
import voxsam.systems.networks.rows  # noqa: F401
