import tests.triton_mode  # noqa: F401  before steps of the guide that have kernels
