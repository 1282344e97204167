"""Other servers with the same model files, under the same load; each in an environment of its own."""
