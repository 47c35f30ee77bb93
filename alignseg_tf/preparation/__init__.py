"""Check a data set, or import one from another annotation tool."""
