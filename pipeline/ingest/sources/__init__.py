"""Folders, archives and tables of a crawl, read as inputs one by one."""
