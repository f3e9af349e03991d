"""OBJECTS TO THE PACS, STUDIES FROM IT: over DICOMweb and DIMSE; what arrives is whole on disk or absent.

peer.py        where a PACS is, and how TLS is spoken with it
instance.py    what a file must say of itself to be sent, or to be kept when it is received
dicomweb.py    QIDO-RS, WADO-RS and STOW-RS (the only place of requests)
dimse_scu.py   C-STORE to a PACS (pynetdicom, in dimse_* alone)
dimse_query.py C-FIND and C-GET
gate.py        who may send here, and how much
dimse_scp.py   C-STORE and C-ECHO from whom the gate lets in
inbox.py       what was received: on disk before it is acknowledged

Logs and errors name files, addresses and statuses; UIDs and what headers hold are told nowhere.
"""
