"""Names of the weight formats, as plain text: known to the command line before anything heavy is imported."""

from __future__ import annotations

# By scheme: the class in export/contract/formats/SCHEME.py. A new format is that file and a line here.
FORMAT_CLASSES = {
    "codebook": "CodebookLayout",
    "trellis": "TrellisLayout",
    "vectors": "VectorLayout",
    "razored": "RazoredLayout",
    "mxfp4": "Mxfp4Layout",
    "groups": "GroupsLayout",
    "nested": "NestedLayout",
    "sparse_codes": "SparseCodesLayout",
}
