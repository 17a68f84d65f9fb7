"""Evaluation: simulated clicks, metrics, figures and reports."""
