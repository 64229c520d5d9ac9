"""From texts and messages to token ids, with the model's own files. Imports neither transformers nor torch."""
