# SPDX-License-Identifier: Apache-2.0
"""FLOPs, bytes and time of programs and machines.

Imports core and pod. Knows no model: it reads jaxprs, compiled programs and data sheets.
"""
