"""What the loop is fed: a batch's plan, guidance, skipped layers and initial latents."""
