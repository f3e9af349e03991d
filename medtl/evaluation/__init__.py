"""PROBABILITIES + LABELS -> NUMBERS WITH INTERVALS: metrics, thresholds, calibration. No torch."""
