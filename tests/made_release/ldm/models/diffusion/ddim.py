"""A sampler that moves its tables to CUDA, as the release's does."""


class DDIMSampler:
    def register_buffer(self, name, value):
        raise RuntimeError("Torch not compiled with CUDA enabled")
