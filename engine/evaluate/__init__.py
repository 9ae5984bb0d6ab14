"""Evaluations of trained runs."""
