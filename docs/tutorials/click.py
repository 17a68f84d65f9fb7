# %% [markdown]
# # Click
#
# A scan, one click, a mask on the scan's own grid. The scan is generated here; yours comes from
# `voxsam.read_volume("ct.nii.gz")`.

# %%
import voxsam
from voxsam.phantoms import make_phantom

phantom = make_phantom(10, (96, 96, 60), (2.0, 2.0, 3.0))
scan = phantom.scan
print(scan.grid.shape, scan.grid.spacing_mm, scan.modality)

# %% [markdown]
# The first click encodes a crop of the scan, further ones only decode. Indices are (i, j, k) of the file's own array.

# %%
session = voxsam.Session(voxsam.load_model("voxsam-tiny"), scan)
mask = session.click(phantom.click)
print(f"{mask.volume_ml:.1f} mL, true: {phantom.label.volume_ml:.1f} mL")

# %% [markdown]
# A second click, on what is still wrong: positive where tumour is missing, negative where the mask goes too far.

# %%
import numpy as np

wrong = (mask.array > 0) != (phantom.label.array > 0)
at = tuple(int(i) for i in np.argwhere(wrong)[len(np.argwhere(wrong)) // 2])
mask = session.click(at, positive=bool(phantom.label.array[at]))
print(f"{mask.volume_ml:.1f} mL")
mask = session.undo()
print(f"{mask.volume_ml:.1f} mL after undo")

# %%
session.show()

# %% [markdown]
# The mask has the shape, affine and orientation of the scan; `.seg.dcm` and `.rtstruct.dcm` work for a DICOM series.

# %%
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    voxsam.write_mask(mask, Path(folder) / "tumour.nii.gz")
    print([path.name for path in Path(folder).iterdir()])
