"""IMAGES + TABLES -> SAMPLES: tasks, labels, splits, duplicates, and pixels brought to one grid."""
