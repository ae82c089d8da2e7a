"""The check of types and shapes at run time, by which `tests/conftest.py` has the package's signatures checked."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for every type checker
