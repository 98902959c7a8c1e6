"""Log-likelihoods of continuations at the least cost: requests, token trees, tree attention, KV cache, LM head, batching."""
