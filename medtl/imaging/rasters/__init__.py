"""PNG, JPEG, TIFF, BMP AND WEBP -> IMAGES: raster is the format, the others know one kind of file each."""
