"""Comparisons: run the missing jobs of a plan of systems, data sets and seeds, and write tables and figures."""
