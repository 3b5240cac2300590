"""Writes YAML that every parser reads as it was meant."""

import re

import yaml

# Numbers of YAML 1.2 that are strings in YAML 1.1. kubectl reads some of them as numbers.
_OTHER_NUMBERS = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z|0o[0-7]+\Z", re.ASCII)


class Dumper(yaml.SafeDumper):
    """Quotes strings that some parsers read as numbers. Writes an object that occurs twice as two copies."""

    def ignore_aliases(self, data: object) -> bool:
        """Write no aliases."""
        del data
        return True


Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _OTHER_NUMBERS, list("-+.0123456789"))
