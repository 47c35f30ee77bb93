"""Segment images, folders and videos with a model in any saved form."""
