"""PROBABILITIES + LABELS -> NUMBERS WITH INTERVALS: metrics, thresholds, calibration, comparison. No torch."""
