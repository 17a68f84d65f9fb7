"""Comparisons: a plan of systems, data sets and seeds; what is missing is run, and tables and figures come out."""
