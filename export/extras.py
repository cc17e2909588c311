"""What the commands of this part need beside the runtime."""

from latentrt.backends import ONNXRUNTIME
from latentrt.environment.requirement import Requirement

REWRITE_NEEDS = (Requirement(extra="convert", packages=("onnx", "onnx_ir")),)
MERGE_NEEDS = (Requirement(extra="convert", packages=("onnx", "onnx_ir", "ml_dtypes")),)
CONVERT_NEEDS = (*MERGE_NEEDS, ONNXRUNTIME)
EXPORT_NEEDS = (
    Requirement(extra="export", packages=("torch", "diffusers", "transformers", "onnx", "onnxscript")),
    ONNXRUNTIME,
)
