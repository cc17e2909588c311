"""Prompts to what the step reads of them: syntax, tokens, chunks, embeddings, context."""
