"""The model rewritten to run faster."""
