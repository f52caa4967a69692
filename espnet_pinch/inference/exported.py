"""What recognisers of exported files have in common: they know of their model what the file's metadata says."""

from espnet_pinch.asr.recogniser import Recogniser
from espnet_pinch.export.metadata import Metadata


class ExportedRecogniser(Recogniser):
    """A file of our export in a runtime."""

    def __init__(self, metadata: Metadata):
        self.metadata, self.task = metadata, metadata.task
        self.token_list, self.sampling_rate = metadata.tokens, metadata.sampling_rate
        self.subwords = metadata.subwords_model
        self.samples_per_frame, self.shortest = metadata.samples_per_frame, metadata.shortest
