"""Refuse names that could not be installed or imported, before anything is written."""

import re
import sys

name, package = "{{ cookiecutter.name }}", "{{ cookiecutter.package }}"
if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
    sys.exit(f"name '{name}': lower-case letters, digits and hyphens, beginning with a letter")
if not package.isidentifier():
    sys.exit(f"package '{package}' is not a Python identifier")
