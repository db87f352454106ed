"""The Hugging Face tokenizer of a SentencePiece vocabulary of the BPE kind (Llama 2, Mistral 7B, TinyLlama).

SentencePiece joins the two neighbours whose whole has the best score; Hugging Face's BPE joins by a list of pairs. The
list that does the same holds every way in which a piece parts into two others, in the order of the wholes' scores.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers

from headrace.errors import ModelError
from headrace.workers.model_store.token_type import TokenType

_SPACE = "▁"
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def merges_by_score(
    tokens: Sequence[str], types: Sequence[TokenType], scores: Sequence[float]
) -> tuple[tuple[str, str], ...]:
    """List the pairs to join, best first.

    Args:
        tokens: text of each token, by id, all different.
        types: kind of each token; only normal ones are ever joined or the result of it.
        scores: the higher, the sooner a piece is made.

    Raises:
        ModelError: two pieces that can be made have the same score, so that a list of pairs cannot tell which is first.
    """
    normal = {
        token: score
        for token, token_type, score in zip(tokens, types, scores, strict=True)
        if token_type is TokenType.NORMAL
    }
    made: dict[float, str] = {}
    merges: list[tuple[float, int, str, str]] = []
    for token, score in normal.items():
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(left, right) for left, right in parts if left in normal and right in normal]
        if pairs and made.setdefault(score, token) != token:
            raise ModelError(f"tokenizer.ggml.scores: {made[score]!r} and {token!r} have the same, {score}")
        merges += ((-score, -len(left), left, right) for left, right in pairs)
    return tuple((left, right) for _, _, left, right in sorted(merges))


def build_sentencepiece(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]], unk_token: str | None, *, space_prefix: bool
) -> Tokenizer:
    """Build the tokenizer, without its special tokens.

    Args:
        tokens: text of each token, by id.
        merges: from ``merges_by_score``.
        unk_token: for what cannot be encoded; None where there is none.
        space_prefix: a text begins with a space that is not written.

    Raises:
        ModelError: there is no token for some byte, so that not every text could be encoded.
    """
    ids = {token: index for index, token in enumerate(tokens)}
    if missing := [byte for byte in _BYTES if byte not in ids]:
        raise ModelError(f"the vocabulary has no token for the byte {missing[0]}")
    model = models.BPE(vocab=ids, merges=list(merges), byte_fallback=True, fuse_unk=True, unk_token=unk_token)
    tokenizer = Tokenizer(model)
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    if space_prefix:
        spaces.insert(0, normalizers.Prepend(_SPACE))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    pieces: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if space_prefix:
        pieces.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(pieces)
    return tokenizer
