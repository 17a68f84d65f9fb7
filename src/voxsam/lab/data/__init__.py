"""Training data: case folders, the prepared store, augmentation, generated phantoms."""
