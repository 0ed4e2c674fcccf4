"""What a run is made of, as short texts that change when it does."""

import json
from hashlib import sha256

from pipelines.loader import Loader
from training.model.card import ModelCard


def network_fingerprint(card: ModelCard) -> str:
    """Which network it is: a definition may have changed under its name."""
    recipe = [card.architecture, card.definition, card.edits]
    return sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()


def data_fingerprint(card: ModelCard, *loaders: Loader | None) -> str:
    """What a run sees: going on with other images, labels or augmentations would not be the same run."""
    digest = sha256(repr([card.classes, card.size, card.fit]).encode())
    for loader in loaders:
        if loader is not None:
            digest.update(loader.source.fingerprint.encode())
            digest.update(repr(loader.options.policy).encode())
    return digest.hexdigest()
