"""GPU kernels in Triton, each in one file beside the plain-torch reference that defines it.

A file's public function takes any device: tensors on CUDA go to the kernel, all others to the reference. Everything here
imports without triton; asking for a CUDA device that is not there is a DeviceError (`device.need`).
"""
