# SPDX-License-Identifier: Apache-2.0
"""Could a sandbox be created on this host now? Asked of the host itself, item by item, without any network access."""
