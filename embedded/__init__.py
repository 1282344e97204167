"""A real Triton Inference Server from a wheel, with Python-based ``onnxruntime`` and ``pytorch`` backends.

Nothing is imported here: the backends run inside Triton's own processes and load this package too.
"""
