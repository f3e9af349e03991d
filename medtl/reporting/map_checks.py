"""Turn the audit of a saliency method, as JSON holds it, into words that stand beside its maps."""

from collections.abc import Mapping
from typing import Any

from medtl.prediction.audit import WORDS
from medtl.reporting.findings import Bounds, MapCheck, Verdict, read_bounds
from medtl.reporting.words import interval_text

# What is measured, and where it is right; in the order of the audit.
MEASURES = {
    "deletion": "how much sooner the score falls than when places are taken away at random",
    "insertion": "how much sooner the score rises than when places are brought in at random",
    "randomisation": "how like the map stays when the weights are shuffled",
    "stability": "how like the map stays under slight noise",
    "pointing": "how often its maximum lies in the mask",
    "energy": "its share in the mask over the mask's share of the image",
}
HEADLINES = {
    "passed": "Its maps passed every check that was made.",
    "undecided": "Too few images to say whether its maps mean anything.",
}


def words_of_audit(row: Mapping[str, Any], basis: str) -> MapCheck:
    """Put the audit of a method in words. row: as audit.to_json gives it; basis: what it rests on."""
    checks: Mapping[str, Mapping[str, Any]] = row["checks"]
    verdicts = {name: check["verdict"] for name, check in checks.items()}
    failed = [WORDS[name][1] for name, verdict in verdicts.items() if verdict == "failed"]
    sentences = [_sentence(name, check) for name, check in checks.items()]
    if row["empty"]:
        sentences.append(f"{row['empty']} of {row['images']} maps are empty: nothing raised the score.")
    if failed:
        headline = f"Do not rely on its maps: {'; '.join(failed)}."
        return MapCheck("failed", headline, tuple(sentences), basis)
    verdict: Verdict = "undecided" if "undecided" in verdicts.values() else "passed"
    return MapCheck(verdict, HEADLINES[verdict], tuple(sentences), basis)


def _sentence(name: str, check: Mapping[str, Any]) -> str:
    side = "below" if name == "randomisation" else "above"
    numbers: Mapping[str, Bounds] = read_bounds({name: {key: check[key] for key in ("value", "low", "high")}})
    verdict = {"passed": "passed", "failed": "not passed", "undecided": "undecided"}[check["verdict"]]
    return (
        f"{name.capitalize()}, {verdict}: {MEASURES[name]}, {interval_text(numbers[name])}; "
        f"{side} {check['bound']:.2g} is right."
    )
