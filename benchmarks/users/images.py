"""Users of the picture tasks."""

from __future__ import annotations

from benchmarks.users.base import GatewayUser


class DigitsUser(GatewayUser):
    """Digits of 96 pixels."""

    workload = "digits"


class ImageNetUser(GatewayUser):
    """Photographs of 320 to 480 pixels on the shorter side."""

    workload = "imagenet"


class ImageNetTorchScriptUser(GatewayUser):
    """The same photographs on the TorchScript twin."""

    workload = "imagenet-torchscript"
