"""SAMPLES -> CHECKPOINT: stages of unfreezing, the loop over them, and the run that it leaves."""
