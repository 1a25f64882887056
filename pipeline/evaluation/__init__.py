"""Predictions against labels: three kinds of input, one `Comparison`, a table and a plot."""
