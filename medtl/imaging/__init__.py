"""FILES -> IMAGES: every format is read exactly or refused, then brought to one grid."""
