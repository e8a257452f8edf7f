"""The version of parspike; the package is built with this one."""

__version__ = "1.0.0"
