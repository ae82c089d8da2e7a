"""`jaxbooth plan`: what a configuration needs of a device, before one is rented. See `estimate` and `compiled`."""
