"""Evaluate a model on labelled images."""
