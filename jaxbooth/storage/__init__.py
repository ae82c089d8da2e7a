"""Files as users have them and as jaxbooth writes them. Imports nothing of jaxbooth but `errors`."""
