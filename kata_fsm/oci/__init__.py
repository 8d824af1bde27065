# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime specification as we honour it: pure functions over its documents. Importing this imports nothing."""
