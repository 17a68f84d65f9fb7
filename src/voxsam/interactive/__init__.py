"""From clicks to a mask: crops of a scan, their features, the history of steps, the label map."""
