"""A byte-level BPE tokenizer, trained on a few lines."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "You are a helpful assistant. You answer what the user asks.",
    "The quick brown fox jumps over the lazy dog; the dog sleeps on.",
    "naïve café déjà vu über 日本語 日本 😀😀👍 emoji",
] * 4
SPECIAL = ["<|im_start|>", "<|im_end|>", "<bos>", "<eos>"]


def train(special=SPECIAL):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


@pytest.fixture(scope="session")
def bpe():
    return train()


@pytest.fixture(scope="session")
def words():
    """WordPiece over whole words and characters: it loses white space and what it does not know."""
    characters = sorted(set("".join(CORPUS)) - {" "})
    pieces = ["[UNK]", *SPECIAL, *CORPUS[1].split(), *characters, *(f"##{each}" for each in characters)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return backend


@pytest.fixture(scope="session")
def unigram():
    """Unigram with metaspace, that puts <bos> before and <eos> after a text."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<bos>", "<eos>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    pair = [(token, backend.token_to_id(token)) for token in ("<bos>", "<eos>")]
    backend.post_processor = processors.TemplateProcessing("<bos> $A <eos>", special_tokens=pair)
    return backend


@pytest.fixture(scope="session")
def framed_bpe():
    """One that puts <bos> before and <eos> after a text."""
    backend = train()
    pair = [(token, backend.token_to_id(token)) for token in ("<bos>", "<eos>")]
    backend.post_processor = processors.TemplateProcessing("<bos> $A <eos>", special_tokens=pair)
    return backend


@pytest.fixture(scope="session")
def stripping_bpe():
    """One whose normaliser drops white space around a text."""
    backend = train()
    backend.normalizer = normalizers.Strip()
    return backend
