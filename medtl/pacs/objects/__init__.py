"""STUDY RESULTS -> OBJECTS FOR THE PACS: they go back to the study whose images they are about.

result.py              the noun that objects are made from: StudyResult, with its ModelIdentity
concepts.py            coded concepts: of the standards where there is one, of 99MEDTL otherwise
headers.py             what all objects share: patient and study as copied, UIDs, equipment
structured_report.py   the classification, as a Structured Report (TID 1500)
secondary_capture.py   the heatmap over the image, as a picture that says what it is
parametric_map.py      the heatmap of a volume, on the grid of its slices

Patient data stand in these objects as the standard demands, and nowhere else.
"""
