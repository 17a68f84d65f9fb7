"""Pictures of scans and masks that need no scores: planes, and what is drawn on them."""
