"""Code that all our services share; it handles neither text nor tensors."""
