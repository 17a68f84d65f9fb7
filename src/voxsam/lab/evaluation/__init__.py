"""How good a mask is, and how it is shown: metrics, figures, reports."""
