"""A trained network that labels text with all that it takes to read text: whole sentences in, labels out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tokenizers import Tokenizer
from torch import Tensor

from hiddenstate_models.bundle import TOKENIZER_FILE, Bundle
from hiddenstate_models.data.entities import marks_entities
from hiddenstate_models.data.lexicon import SUFFIXES, Lexicon
from hiddenstate_models.networks.labels import LabellingConfig, LabellingNetwork


@dataclass(frozen=True)
class Labeller:
    """Network, words and labels that belong together; the network is ready to evaluate."""

    network: LabellingNetwork
    lexicon: Lexicon
    names: tuple[str, ...]
    """The labels, in the order of the network's logits."""
    look_ahead: int

    @classmethod
    def of_run(cls, record: Mapping[str, Any], tokenizer: Tokenizer, weights: Mapping[str, Tensor]) -> Self:
        """From the fields of run.json."""
        options = record["data"]["options"]
        suffixes = SUFFIXES if options["spelling"] else ()
        lexicon = Lexicon.of(tokenizer, lowercase=options["lowercase"], suffixes=suffixes)
        labels = tuple(record["data"]["labels"])
        return cls._of(record["network"], lexicon, labels, options.get("look_ahead", 0), weights)

    @classmethod
    def of_bundle(cls, bundle: Bundle, weights: Mapping[str, Tensor]) -> Self:
        """From a bundle of a model of labels."""
        text, labels = bundle.config.text, bundle.config.labels
        assert text is not None
        assert labels is not None
        tokenizer = Tokenizer.from_file(str(bundle.folder / TOKENIZER_FILE))
        lexicon = Lexicon.of(tokenizer, lowercase=text.lowercase, suffixes=text.spelling_suffixes)
        return cls._of(bundle.config.network, lexicon, labels.names, labels.look_ahead, weights)

    @classmethod
    def _of(
        cls,
        network: Mapping[str, Any],
        lexicon: Lexicon,
        names: tuple[str, ...],
        look_ahead: int,
        weights: Mapping[str, Tensor],
    ) -> Self:
        labelling = LabellingNetwork(LabellingConfig.from_dict(network), lexicon.words)
        labelling.load_state_dict(weights)
        if labelling.crf is not None and marks_entities(names):
            labelling.crf.constrain(names)
        return cls(labelling.eval(), lexicon, names, look_ahead)
