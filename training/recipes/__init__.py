"""Recipes, one a file, each with its command and its measured result.

A recipe file holds one value, `RECIPE`; its name is the file's.
"""
