# SPDX-License-Identifier: Apache-2.0
"""C++ kernels for CPUs, compiled where they run, beside the plain JAX forms that define them.

Imports no other room.
"""
