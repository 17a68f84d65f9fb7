# %% [markdown]
# # Compare
#
# A plan names systems, data and seeds; each system gets the same scans, steps and clicks. Here two networks of VoxSAM's
# own loop on generated scans, for a few steps: it shows how it is done, and its numbers mean nothing.

# %%
import os
import tempfile
from pathlib import Path

from voxsam.cli import main

os.chdir(tempfile.mkdtemp())
Path("plan.yaml").write_text(
    """
title: Two networks
reference: voxsam
data:
  - name: phantoms
    phantoms: {count: 6, shape: [48, 48, 34], spacing_mm: [4, 4, 6], brighter_hu: 100}
    spacing_mm: [3, 3, 3]
recipe: {model: {size: tiny, crop: 64}, steps: 6, warmup: 1, batch: 1, pictures: 0, validate_every: 6}
evaluation: {clicks: [1, 3], trials: 2}
systems: [voxsam, click-unet]
examples: 1
job_cores: 1
job_gb: 2
"""
)
main(["compare", "plan.yaml", "-o", "out"])

# %% [markdown]
# Run it again and nothing is done twice: a changed plan makes what is missing. `table.tex` and `table.csv` hold the
# same numbers.

# %%
from IPython.display import Image

Image("out/figures/bars-phantoms.png")
