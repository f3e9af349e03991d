"""Which code strings of a header may be shown: the standard's own terms, and nothing that a person typed.

A code string (CS) holds any sixteen capitals: a name fits, and technicians type remarks there.
"""

import re

NOT_SHOWN = "(no known term)"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Body Part Examined (PS3.16 Annex L), word by word, with abbreviations that devices write.
BODY_WORDS = _words(
    """
    ABD ABDOMEN ABDOMINAL ACETABULUM ADRENAL AIRWAY AND ANKLE ANTEBRACHIAL ANTERIOR AORTA AP ARM ARTERY
    ATRIUM AXILLA BACK BLADDER BODY BONE BOWEL BRACHIAL BRAIN BREAST BRONCHUS BUTTOCK C CALCANEUS CALF
    CALVARIUM CARDIAC CAROTID CEREBELLUM CEREBRAL CERVICAL CHEEK CHEST CHOROID CIRCLE CLAVICLE COCCYX
    COLON CORNEA CRANIAL CSPINE CTSPINE DIGIT DORSAL DUCT DUODENUM EAR EARS ELBOW ENTIRE ESOPHAGUS
    EXTREMITY EYE EYELID EYES FACE FEMORAL FEMUR FETUS FIBULA FINGER FLANK FOOT FOREARM FOREFOOT
    GALLBLADDER GLAND GROIN HAND HANDS HEAD HEADNECK HEART HEEL HIP HIPS HUMERUS IAC ILEUM ILIUM INNER
    INTERNAL JAW JEJUNUM JOINT KIDNEY KIDNEYS KNEE KNEES L LARYNX LAT LATERAL LEFT LEG LEGS LIVER LOWER
    LSPINE LSSPINE LUMBAR LUMBOSACRAL LUNG LUNGS MANDIBLE MAXILLA MEDIASTINUM MOUTH MUSCLE NASAL NECK
    NOSE OF OPTIC ORBIT ORBITS OVARY PA PANCREAS PAROTID PATELLA PELV PELVIC PELVIS PENIS PHARYNX PITUITARY
    POSTERIOR PROSTATE RADIUS RECTUM RIB RIBS RIGHT S SACROILIAC SACRUM SCALP SCAPULA SCLERA SCROTUM
    SELLA SHOULDER SHOULDERS SI SINUS SINUSES SKULL SPINAL SPINE SPLEEN SSPINE STERNUM STOMACH
    SUBCLAVIAN T TESTIS THIGH THORACIC THORACOLUMBAR THORAX THUMB THYMUS THYROID TIBIA TLSPINE TMJ TOE
    TOES TONGUE TRACHEA TSPINE TURCICA ULNA UPPER URETER URETHRA UTERUS VAGINA VASCULAR VEIN VULVA WHOLE
    WHOLEBODY WITH WRIST ZYGOMA
    """
)
# View Position (PS3.3 C.8.11.1, C.8.11.7), with what devices write.
VIEW_WORDS = _words(
    """
    ANTERIOR AP AT AXIAL CC CV DECUBITUS ERECT FB ISO LAO LAT LATERAL LEFT LL LLD LLO LM LMO LPO ML MLO
    OBL OBLIQUE OTHER PA POSTERIOR PRONE RAO RIGHT RL RLD RLO RPO SIO SKYLINE SPECIMEN SUPINE TAN
    UPRIGHT XCC XCCL XCCM
    """
)
# Modality (PS3.3 C.7.3.1.1.1), those of images.
MODALITIES = _words(
    """
    AR BI BMD CR CT DG DOC DX ECG ES GM IO IVOCT IVUS LS MG MR NM OAM OCT OP OPM OPT OT PT PX RF RG
    RTIMAGE SC SM SMR TG US VA XA XC
    """
)
# Photometric Interpretation (PS3.3 C.7.6.3.1.2), that of TIFF, and pillow's modes.
PHOTOMETRIC = re.compile(
    r"MONOCHROME[12]|PALETTE COLOR|YBR_(FULL(_422)?|RCT|ICT|PARTIAL_420)|RGBA?|1|LA?|I(;16B?)?|PA?"
    r"|MinIs(White|Black)|palette|YCbCr"
)


def shown_body_part(text: str) -> str:
    """Return a body part made of the standard's words; NOT_SHOWN for another, "" for none."""
    return _shown(text, all(word in BODY_WORDS for word in re.split("[^A-Z]+", text) if word))


def shown_view(text: str) -> str:
    """Return a view position in the same way."""
    return _shown(text, all(word in VIEW_WORDS for word in re.split("[^A-Z]+", text) if word))


def shown_modality(text: str) -> str:
    """Return a modality in the same way."""
    return _shown(text, text in MODALITIES)


def shown_photometric(text: str) -> str:
    """Return a photometric interpretation in the same way."""
    return text if not text or PHOTOMETRIC.fullmatch(text) else NOT_SHOWN


def _shown(text: str, known: bool) -> str:
    # Digits and signs between words may be shown ("L5-S1"), but no year, date or ID.
    plain = re.fullmatch(r"[A-Z0-9 _/&+.,-]{1,16}", text) and len(re.findall("[0-9]", text)) < 4
    return text if not text or (known and plain) else NOT_SHOWN
