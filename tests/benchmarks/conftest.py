import tests.triton_mode  # noqa: F401  the engine's benchmark imports the kernels
