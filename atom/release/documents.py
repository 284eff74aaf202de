"""Write the machine-readable documents of a release: Croissant, CycloneDX, SLSA."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

from atom.io.files import sha256
from atom.release.bundle import MANIFEST, SIGNATURE, names
from atom.release.facts import Facts
from atom.release.form import Form

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "equivalentProperty": "cr:equivalentProperty",
    "samplingRate": "cr:samplingRate",
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(facts: list[Facts], form: Form, created: str) -> dict[str, Any]:
    """Return the data manifest: where each source is, its licence, and the digests of its parts."""
    licences = sorted({each.data_licence or form.data_licence for each in facts} - {"", None})
    files: dict[str, dict[str, Any]] = {}
    for each in facts:
        dataset = each.inputs.get("dataset") or {}
        for name, digest in (dataset.get("parts") or {}).items():
            key = re.sub(r"[^A-Za-z0-9._/-]", "_", f"{each.run.dataset.name}/{name}")
            files[key] = {
                "@type": "cr:FileObject",
                "@id": key,
                "name": name,
                "description": f"Digest of its content by ATOM: {digest}",
                "contentUrl": each.data_origin or form.data_access or name,
                "encodingFormat": "text/plain",
                # Files up to 64 MiB: the SHA-256 of the whole content.
                "sha256": digest,
            }
    found: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"Training data of {form.name}",
        "description": form.data_description or "The training data of a model made with ATOM.",
        "datePublished": created,
        "version": "1.0.0",
        "license": licences or ["unknown"],
        "creator": [{"@type": "sc:Person", "name": name} for name in form.authors]
        or [{"@type": "sc:Organization", "name": "unknown"}],
        "url": form.data_access
        or next((f.data_origin for f in facts if f.data_origin), "")
        or "https://example.org/not-said",
        "citeAs": form.paper or form.report or form.name,
        "distribution": list(files.values()),
    }
    return found


def bill(facts: list[Facts], form: Form, created: str) -> dict[str, Any]:
    """Return the bill of materials in CycloneDX 1.6: packages, model and data."""
    components: dict[str, dict[str, Any]] = {}
    for each in facts:
        for name, told in (each.lock.get("environment") or {}).items():
            purl = f"pkg:pypi/{name}@{told.get('version')}"
            entry: dict[str, Any] = {
                "type": "library",
                "bom-ref": purl,
                "name": name,
                "version": str(told.get("version")),
                "purl": purl,
            }
            if told.get("sha256"):
                value = str(told["sha256"])
                entry["properties"] = [{"name": "atom:digest-of-record", "value": value}]
            if licence := each.code_licences.get(name):
                entry["licenses"] = [{"expression": licence}]
            components[purl] = entry
        dataset = each.inputs.get("dataset") or {}
        reference = f"data:{each.run.dataset.name}:{str(dataset.get('digest'))[:16]}"
        components[reference] = {
            "type": "data",
            "bom-ref": reference,
            "name": each.run.dataset.name,
            "properties": [{"name": "atom:digest", "value": str(dataset.get("digest"))}],
        }
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": form.name,
        "version": created,
    }
    if form.licence:
        model["licenses"] = [{"expression": form.licence}]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {"component": model},
        "components": list(components.values()),
    }


def provenance(folder: Path, facts: list[Facts], created: str) -> dict[str, Any]:
    """Return an in-toto statement with SLSA provenance of the weights in a release."""
    subjects = [
        {"name": name, "digest": {"sha256": sha256(folder / name)}}
        for name in names(folder)
        if name.endswith(".safetensors") and name not in (MANIFEST, SIGNATURE)
    ]
    sources: list[dict[str, Any]] = []
    for each in facts:
        for repository in (each.lock.get("repositories") or {}).values():
            sources.append(
                {
                    "uri": f"git+{repository.get('repository') or 'unknown'}",
                    "digest": {"gitCommit": str(repository.get("commit"))},
                    "annotations": {"dirty": bool(repository.get("dirty"))},
                }
            )
        digest = (each.inputs.get("dataset") or {}).get("digest")
        sources.append({"uri": f"dataset:{each.run.dataset.name}", "digest": {"atom": str(digest)}})
    unique = {str(each): each for each in sources}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:atom:train:v1",
                "externalParameters": {
                    each.stage.name: each.run.model_dump(mode="json") for each in facts
                },
                "resolvedDependencies": list(unique.values()),
            },
            "runDetails": {
                "builder": {"id": "urn:atom"},
                "metadata": {"finishedOn": created},
            },
        },
    }
