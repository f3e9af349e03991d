"""DICOM FILES -> IMAGES: headers, instances, frames, volumes; pixels decoded in processes of their own."""
