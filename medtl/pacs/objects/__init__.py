"""STUDY RESULTS -> OBJECTS FOR THE PACS: they refer to the images scored, and name their patient."""

# What `medtl results` writes; write.py has their builders. The command line needs no more than the names.
KINDS = ("sr", "sc", "map", "fhir")
