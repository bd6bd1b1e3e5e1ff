"""What any of our services is made of; it knows neither text nor tensors."""
