"""Turn a finished run into a released model."""
