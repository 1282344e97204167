"""The scripts that trained the weights in zoo/weights, and the metrics that judge them."""
