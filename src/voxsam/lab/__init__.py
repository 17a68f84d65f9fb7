"""The laboratory: data sets, training, evaluation, and the systems that VoxSAM is compared with."""
