"""Makes certificates for development."""
