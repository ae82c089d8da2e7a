"""What a person sees: messages, warnings, progress, and the log file. It imports nothing of jaxbooth but `errors`."""
