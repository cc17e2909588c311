"""LoRA: small files of low-rank differences, merged into a bundle's weights when its engines load (docs/lora.md).

sources   a path to files: one, or those of a folder
file      a file's tensors, whatever its layout, to layers: down, up, alpha and what else belongs together
strengths adapter   alphas that no tensor says: PEFT's configurations
targets   the weights of a bundle by their names in the checkpoint; original_names: and in the original networks
matching  which of them a layer means
delta     a layer to the difference that it makes to its weight
merge     pristine weight + differences, in the precision of the bundle, as overrides of a graph
"""

from latentrt.lora.file import Lora, LoraLike, as_loras
from latentrt.lora.merge import Merged, merge
from latentrt.lora.sources import lora_sha256

__all__ = ["Lora", "LoraLike", "Merged", "as_loras", "lora_sha256", "merge"]
