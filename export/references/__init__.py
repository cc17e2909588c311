"""What graphs and samplers must equal, by diffusers' and transformers' own code alone."""
