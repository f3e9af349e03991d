"""FINDINGS -> PAGES: self-contained HTML that opens from disk, loads nothing and names no patient.

findings.py   the nouns a page is told: StudyFinding, Refusal, ModelCard
words.py      numbers and metrics in plain words
figures.py    pixels and heatmaps to data URIs
charts.py     curves to SVG data URIs, in a light and a dark theme
html.py       templates to pages under a Content-Security-Policy
report.py     the report: a list of studies, a page per study, the model card
evaluation_page.py   the page of an evaluation
card_text.py  the model card as Markdown, beside an exported model
overlay.py    a heatmap over its image, as one picture
dicom/        objects that go back to the PACS, the only ones that name the patient
fhir.py       the same as a FHIR Bundle
pacs/         studies from a PACS, and objects to it
"""
