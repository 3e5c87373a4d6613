"""Evaluations: commands that measure whether attributions are right."""
