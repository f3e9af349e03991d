"""WHAT EVERYTHING STANDS ON: files that are whole or absent, locks, journals, child processes, seeds, ids."""

__version__ = "0.2.0"
