"""`python -m jaxbooth`."""

from jaxbooth.cli import main

main()
