"""What the commands of this part need beside the runtime."""

from latentrt.environment.requirement import Requirement

EXPORT_EXTRA = Requirement(extra="export", packages=("torch", "diffusers", "transformers", "onnx", "onnxscript"))
CONVERT_EXTRA = Requirement(extra="convert", packages=("onnx", "onnx_ir", "onnxruntime", "ml_dtypes"))
REWRITE_EXTRA = Requirement(extra="convert", packages=("onnx", "onnx_ir"))
