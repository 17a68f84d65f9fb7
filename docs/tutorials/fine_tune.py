# %% [markdown]
# # Fine-tune
#
# Labelled scans in, a model file out: `prepare`, `train`, `evaluate`. Here on generated scans and for a few steps, so
# that it takes a minute; each cell is a command (`voxsam prepare ...`) run from Python.

# %%
import json
import os
import tempfile
from pathlib import Path

from voxsam.cli import main

os.chdir(tempfile.mkdtemp())
main(["phantoms", "-o", "raw", "--count", "6", "--shape", "48,48,34", "--spacing", "4,4,6"])

# %% [markdown]
# `prepare` checks every case, measures the data set, splits it by case, and resamples it once. A folder in nnU-Net raw
# or MSD layout, KiTS, LiTS or a CSV table will do.

# %%
main(["prepare", "raw", "-o", "prepared", "--spacing", "3,3,3"])
print(json.loads(Path("prepared/dataset.json").read_text())["split"])

# %% [markdown]
# The recipe `fine-tune` comes with VoxSAM and goes on from `voxsam-tiny`. Any key may be changed: here the number of
# steps.

# %%
words = ["--steps", "4", "--validate_every", "2", "--warmup", "1", "--pictures", "0"]
main(["train", "fine-tune", "--data", "prepared", "-o", "run", *words])

# %% [markdown]
# On the test cases, which no step saw. What the model was trained on stands in its file: a test on it is called none.

# %%
words = ["--model", "run/model.safetensors", "--clicks", "1", "--trials", "2"]
main(["evaluate", "raw", "--held-out", "prepared", "-o", "scores", *words])

# %%
main(["info", "run/model.safetensors"])
