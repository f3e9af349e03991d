"""FILES -> IMAGES: every format is read exactly or refused, then resampled to one grid."""
