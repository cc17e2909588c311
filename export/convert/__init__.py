"""Bundle to bundle: precision, and LoRAs in the weights."""
