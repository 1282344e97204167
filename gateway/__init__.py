"""The gateway: from a client's bytes to Triton and back."""
