"""Refuse names that could not be installed or imported, before anything is written."""

import keyword
import re
import sys

name, project, package = "{{ cookiecutter.name }}", "{{ cookiecutter.project }}", "{{ cookiecutter.package }}"
texts = {"description": r"""{{ cookiecutter.description }} """, "author": r"""{{ cookiecutter.author }} """}

if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
    sys.exit(f"name '{name}': lower-case letters and digits, with single hyphens between them, beginning with a letter")
if not re.fullmatch(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*", project):
    sys.exit(f"project '{project}': letters and digits, with single dots, hyphens or underscores between them")
if not package.isidentifier() or keyword.iskeyword(package):
    sys.exit(f"package '{package}' can't be imported: it has to be a Python identifier")
if re.sub(r"[._-]+", "-", project).lower() == "xi-inference" or package in ("xi_core", "xi_plugins", "xi_server", "xi_cli"):
    sys.exit(f"project '{project}' with package '{package}' would overwrite xi itself; choose other names")
for field, text in texts.items():
    if set(text) & set('"\\\n'):
        sys.exit(f"{field}: no quotation marks and no backslashes, please; it is written into Python and TOML")
