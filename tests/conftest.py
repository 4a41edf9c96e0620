"""Settings for all tests."""

from hypothesis import settings

settings.register_profile("fedbone", deadline=None)  # a busy machine would fail a slow example that passes alone
settings.load_profile("fedbone")
