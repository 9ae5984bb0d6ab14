"""Evaluation datasets, each read in the directory layout its authors distribute."""
