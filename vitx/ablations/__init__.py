"""Ablations: rows of changes to one experiment, trained with several seeds, as a table with tests and pictures."""
