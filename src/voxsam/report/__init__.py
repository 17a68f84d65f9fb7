"""Reports on a segmentation: measurements, figures, the 3D view, and files such as HTML, DICOM SR and STL."""
