"""Registers every compared system: one line for each file of them. Heavy libraries are imported by their methods."""

import voxsam.systems.ablations
import voxsam.systems.common_loop
import voxsam.systems.networks.rows
import voxsam.systems.nnunet.system
import voxsam.systems.peft.rows
import voxsam.systems.remote
import voxsam.systems.sam_slices  # noqa: F401
