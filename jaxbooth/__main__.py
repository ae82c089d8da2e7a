"""`python -m jaxbooth`."""

from jaxbooth.cli.main import main

main()
