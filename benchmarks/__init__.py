"""How fast VoxSAM is and how much memory it takes, beside the released computation on the same weights."""
