"""CHECKPOINT + STUDIES -> PREDICTIONS: one row a study, scored or refused, in this process or many."""
