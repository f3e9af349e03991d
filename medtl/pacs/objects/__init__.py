"""STUDY RESULTS -> OBJECTS FOR THE PACS: they refer to the images scored, and name their patient."""

# What `medtl results` writes: DICOM objects, each with the module and function (of one name) that build it,
# and the FHIR Bundle. Names alone, so that the command line knows the kinds without loading highdicom.
BUILDERS = {"sr": "structured_report", "sc": "secondary_capture", "map": "parametric_map"}
KINDS = (*BUILDERS, "fhir")
