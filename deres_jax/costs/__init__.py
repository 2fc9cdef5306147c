# SPDX-License-Identifier: Apache-2.0
"""FLOPs, bytes and step times of programs on machines.

May import core and pod. Never knows a model: it reads jaxprs, compiled programs and data sheets.
"""
