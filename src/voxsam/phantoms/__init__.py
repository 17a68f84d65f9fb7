"""Generated CT scans with a tumour whose mask is known."""
