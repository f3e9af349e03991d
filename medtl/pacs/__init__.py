"""STUDIES FROM A PACS, OBJECTS TO IT by DICOMweb and DIMSE; a received instance is whole on disk, or absent.

Logs and errors name files, addresses and statuses, never a UID or the content of a header.
"""
