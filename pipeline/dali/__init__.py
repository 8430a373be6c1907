"""The DALI graphs; the only use of nvidia.dali."""
