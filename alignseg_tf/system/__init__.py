"""Files, processes, processors and the terminal."""
