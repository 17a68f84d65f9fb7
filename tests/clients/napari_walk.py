"""What a user of napari does with napari-nninteractive against a server; run by napari's own Python (test_napari.py).

    python napari_walk.py http://127.0.0.1:8000 ct.nii.gz 12,20,9 OUT

opens the file, initializes, clicks on the voxel (i, j, k of the file), undoes, clicks again, and exports into OUT.
OUT/facts.json holds the layer's index of the click and the spacing as the plug-in sends it.
"""

import json
import sys
import time
from pathlib import Path

import napari
import nibabel
import numpy as np
from napari_nninteractive.widget_main import nnInteractiveWidget
from qtpy.QtCore import QSettings
from qtpy.QtWidgets import QApplication, QFileDialog

LIMIT_S = 120


def wait_until(condition, what):
    end = time.monotonic() + LIMIT_S
    while not condition():
        QApplication.processEvents()
        if time.monotonic() > end:
            raise SystemExit(f"napari: {what} did not happen in {LIMIT_S} s")
        time.sleep(0.01)


def layer_index(path, voxel, layer):
    """The voxel of the file as an index of napari's array: its axes are S, A, R (napari-nifti 0.0.20)."""
    file = nibabel.load(path)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(file.affine), nibabel.orientations.axcodes2ornt("SAR")
    )
    marked = np.zeros(file.shape, np.uint8)
    marked[voxel] = 1
    turned = nibabel.orientations.apply_orientation(marked, turn)
    assert turned.shape == layer.data.shape, (turned.shape, layer.data.shape)
    return tuple(int(n) for n in np.argwhere(turned)[0])


def main(address, path, click, out):
    out = Path(out)
    QSettings.setPath(QSettings.NativeFormat, QSettings.UserScope, str(out / "settings"))
    viewer = napari.Viewer(show=True)
    (layer,) = viewer.open(path, plugin="napari-nifti")
    widget = nnInteractiveWidget(viewer)
    viewer.window.add_dock_widget(widget)
    widget.server_url_edit.setText(address)
    widget.on_init_button()
    wait_until(lambda: widget.session is not None and widget.point_layer_name in viewer.layers, "Initialize")

    index = layer_index(path, tuple(int(n) for n in click.split(",")), layer)
    mask = viewer.layers[widget.label_layer_name]
    points = viewer.layers[widget.point_layer_name]
    points.add(index)  # as the mouse does
    wait_until(lambda: mask.data.any(), "a mask")
    first = mask.data.copy()
    widget.on_undo()
    wait_until(lambda: not mask.data.any(), "undo")
    viewer.layers[widget.point_layer_name].add(index)
    wait_until(lambda: mask.data.any(), "a mask after undo")
    assert np.array_equal(mask.data, first)

    QFileDialog.getExistingDirectory = lambda *args, **kwargs: str(out)
    widget._export()
    spacing = [float(mm) for mm in widget.session_cfg["spacing"]]
    (out / "facts.json").write_text(json.dumps({"index": index, "spacing": spacing}))
    np.save(out / "mask.npy", first)
    widget._release_session()
    viewer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
