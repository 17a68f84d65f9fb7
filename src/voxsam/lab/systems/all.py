"""Registers every compared system: one line for each file of them. Heavy libraries are imported by their methods."""

import voxsam.lab.systems.ablations
import voxsam.lab.systems.common_loop
import voxsam.lab.systems.networks.rows
import voxsam.lab.systems.nnunet.system
import voxsam.lab.systems.peft.rows
import voxsam.lab.systems.remote
import voxsam.lab.systems.sam_slices  # noqa: F401
