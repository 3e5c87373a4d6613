"""The version of this program, which what it writes is marked with."""

VERSION = "0.1.0"
