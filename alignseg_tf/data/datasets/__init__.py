"""One module a data set: what its labels mean and how its files lie."""
