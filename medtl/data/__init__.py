"""IMAGES + TABLES -> SAMPLES: tasks, labels, splits, duplicates, and pixels on one grid."""
