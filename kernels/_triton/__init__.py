"""The fast road: Triton twins of kernels, imported only when a CUDA tensor arrives or a test forces them."""
