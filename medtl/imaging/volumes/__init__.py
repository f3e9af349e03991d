"""FILES OF VOLUMES OTHER THAN DICOM -> IMAGES: NIfTI, Analyze, MGH, NRRD and MetaImage, a module each."""
