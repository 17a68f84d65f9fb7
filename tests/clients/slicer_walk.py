"""What a user of 3D Slicer does with SlicerNNInteractive against a server; run by a Python with `slicer-core`.

    python slicer_walk.py http://127.0.0.1:8000 ct.nii.gz X,Y,Z OUT SlicerNNInteractive.py

The plug-in's own widget code works on MRML's own scene, volume and segmentation; only its Qt parts are stand-ins, for
`slicer-core` has no Qt. Clicks are places in the patient (RAS mm), as the mouse gives them.
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import slicer
import slicer.util
import vtk


class AnyClass(type):
    def __getattr__(cls, name):  # qt.Qt.Dialog, qt.QTimer.singleShot
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


class Anything(metaclass=AnyClass):
    """A Qt object that accepts every call and does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __call__(self, *args, **kwargs):
        return Anything()

    def __or__(self, other):  # of flags
        return self


class AnyModule(types.ModuleType):
    """A module whose names are all such classes."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


class Editor:
    """The Segment Editor's widget: which nodes it works on."""

    def __init__(self, node):
        self._node, self._segmentation, self._volume = node, None, None

    def mrmlSegmentEditorNode(self):
        return self._node

    def segmentationNode(self):
        return self._segmentation

    def setSegmentationNode(self, node):
        self._segmentation = node

    def sourceVolumeNode(self):
        return self._volume

    def setSourceVolumeNode(self, node):
        self._volume = node


class Ui(Anything):
    def __init__(self, address, editor):
        self.serverUrlEdit = types.SimpleNamespace(text=address)
        self.editor_widget = editor


def stand_in():
    """What Slicer's application adds to its libraries."""
    for name in ("qt", "PythonQt", "PythonQt.QtGui"):
        sys.modules[name] = AnyModule(name)
    i18n, scripted = types.ModuleType("slicer.i18n"), types.ModuleType("slicer.ScriptedLoadableModule")
    i18n.tr, i18n.translate = (lambda text: text), (lambda context, text: text)
    for name in ("ScriptedLoadableModule", "ScriptedLoadableModuleWidget", "ScriptedLoadableModuleLogic"):
        setattr(scripted, name, type(name, (), {"__init__": lambda self, parent=None: None}))
    scripted.ScriptedLoadableModuleTest = object
    sys.modules |= {i18n.__name__: i18n, scripted.__name__: scripted}
    slicer.app = Anything()
    slicer.mrmlScene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(slicer.mrmlScene)
    slicer.modules = types.SimpleNamespace(segmentations=types.SimpleNamespace(logic=lambda: logic))
    rules = slicer.vtkSegmentationConverterFactory.GetInstance()
    rules.RegisterConverterRule(slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule())
    slicer.util.settingsValue = lambda key, default, converter=None: default
    slicer.util.mainWindow = lambda *args, **kwargs: None
    slicer.util.showStatusMessage = lambda *args, **kwargs: None
    slicer.util.errorDisplay = fail


def fail(text, *args, **kwargs):
    raise SystemExit(f"Slicer: {text}")


def read(path):
    """The file as a volume of the scene, by MRML's own reader."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(path)
    storage.ReadData(node) or fail(f"{path} cannot be read")
    return node


def widget_of(plugin, address, volume):
    """The plug-in's widget as after its set-up, its session not begun."""
    spec = importlib.util.spec_from_file_location("SlicerNNInteractive", plugin)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    widget = module.SlicerNNInteractiveWidget()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor = Editor(node)
    editor.setSourceVolumeNode(volume)
    widget.ui, widget.segment_editor_node = Ui(address, editor), node
    widget.session = widget.target_buffer = widget._session_executor = widget._heartbeat_timer = None
    widget.api_key, widget.server, widget.SESSION_LOST_ERRORS = "", "", ()
    widget.previous_states, widget.prompt_types, widget.all_prompt_buttons = {}, {}, {}
    widget._prompt_undo_stack, widget.scribble_segment_node_name = [], "scribble"
    widget.selected_style = widget.unselected_style = ""
    widget._cleanup_in_progress = widget._application_quitting = False
    widget.setup_prompts = lambda *args, **kwargs: None
    widget.update_server()  # as its line edit does; a new address ends a session
    return widget


def save(widget, volume, path):
    """The selected segment on the volume's geometry, as "export to labelmap" and "save" do."""
    label = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    label.CopyOrientation(volume)
    image = vtk.vtkImageData()
    image.SetDimensions(volume.GetImageData().GetDimensions())
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    label.SetAndObserveImageData(image)
    slicer.util.arrayFromVolume(label)[:] = widget.get_segment_data()
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.WriteData(label) or fail(f"{path} cannot be written")


def main(address, path, place, out, plugin):
    out = Path(out)
    stand_in()
    volume = read(path)
    widget = widget_of(plugin, address, volume)
    click = widget.ras_to_xyz([float(mm) for mm in place.split(",")])
    widget.point_prompt(xyz=click, positive_click=True)
    save(widget, volume, out / "point.nrrd")
    first = widget.get_segment_data()
    assert first[tuple(click[::-1])] == 1, click

    corner = [n + 3 for n in click]
    widget.bbox_prompt([click[0] - 3, click[1] - 3, click[2]], [corner[0], corner[1], click[2]], positive_click=True)
    boxed = widget.get_segment_data()
    assert boxed.any() and not np.array_equal(boxed, first)
    widget.on_undo()
    assert np.array_equal(widget.get_segment_data(), first), "undo"

    widget.on_next_segment()
    assert not widget.get_segment_data().any(), "a new segment is empty"
    k, j, i = click[::-1]
    stroke = np.ones((1, 1, 7), np.uint8)
    widget.lasso_or_scribble_prompt(stroke, [[k, k + 1], [j, j + 1], [i - 3, i + 4]], True, tp="scribble")
    save(widget, volume, out / "scribble.nrrd")
    ids = widget.get_segmentation_node().GetSegmentation().GetSegmentIDs()
    assert len(ids) == 2, ids
    widget.release_session()


if __name__ == "__main__":
    main(*sys.argv[1:])
