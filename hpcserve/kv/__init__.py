"""KV cache: block hashes that are the same in every process."""
