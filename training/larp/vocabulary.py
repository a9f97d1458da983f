"""Word pieces learnt from captions: a tokenizer of BERT's kind for a text tower that starts from scratch."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PAD, UNKNOWN, START, END, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""BERT's special tokens, ids 0 to 4."""


def train_vocabulary(captions: Iterable[str], size: int) -> Tokenizer:
    """Learn at most `size` word pieces: lower case without accents, split at white space and punctuation.

    The letters of the captions are always in, so `size` may be passed for scripts with many of them. The same captions
    give the same vocabulary: the trainer alone would number the letters inside words ("##a") in random order, and
    equally frequent pairs go by number, so they are given to it in order.
    """
    captions = list(captions)
    normaliser = normalizers.BertNormalizer(lowercase=True)
    letters = sorted({letter for text in captions for letter in normaliser.normalize_str(text) if not letter.isspace()})
    inside = [f"##{letter}" for letter in letters]
    learner = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    learner.normalizer = normaliser
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=[*SPECIAL, *inside], show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    return _bert_tokenizer(learner.get_vocab())


def _bert_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, SPECIAL.index(START)), (END, SPECIAL.index(END))]
    )
    return tokenizer


def fit_to_batches(tokenizer: Tokenizer, max_tokens: int, pad: str, pad_id: int) -> None:
    """Make the tokenizer cut at `max_tokens` and pad a batch to its longest caption."""
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(pad_id=pad_id, pad_token=pad)
