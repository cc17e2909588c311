"""Text to token ids, from the `tokenizer.json` of a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from latentrt.errors import BundleError, RequestError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

    from latentrt.family import TextEncoderSpec


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A CLIP or T5 tokenizer: ids equal to those of `transformers` for any text.

    Attributes:
        bos_id: the id that opens a prompt; None: T5 has none.
        eos_id: the id that closes a prompt.
        pad_id: the id that fills a prompt up to `max_length`.
        vocab_size: ids run from 0 to `vocab_size` - 1.
        max_length: tokens that the text encoder takes at once, the opening and closing ones among them.
    """

    bos_id: int | None
    eos_id: int
    pad_id: int
    vocab_size: int
    max_length: int
    _backend: Backend = field(repr=False)

    @classmethod
    def of(cls, spec: TextEncoderSpec, root: Path) -> Tokenizer:
        """That of a text encoder in the bundle at `root`; raises as `load`."""
        return cls.load(root / spec.tokenizer, pad_id=spec.pad_id, max_length=spec.length)

    @classmethod
    def load(cls, path: Path, *, pad_id: int | None = None, max_length: int = 77) -> Tokenizer:
        """Read a `tokenizer.json`.

        Args:
            pad_id: None: the closing id, which is what SD 1.x pads with.

        Raises:
            BundleError: the file is missing or malformed, or it is no tokenizer of CLIP's or T5's kind.
        """
        backend = _read(path)
        bos_id, eos_id = _frame(backend, path)
        vocab_size = backend.get_vocab_size(with_added_tokens=True)
        pad_id = eos_id if pad_id is None else pad_id
        if not 0 <= pad_id < vocab_size:
            raise BundleError(f"padding id {pad_id}", expected=f"an id of {path}, below {vocab_size}")
        tokenizer = cls(bos_id, eos_id, pad_id, vocab_size, max_length, backend)
        if tokenizer.capacity < 1:
            raise BundleError(f"a text length of {max_length} tokens", expected=f"at least {1 + tokenizer.n_markers}")
        return tokenizer

    @property
    def n_markers(self) -> int:
        """Opening and closing ids of a chunk."""
        return 1 if self.bos_id is None else 2

    @property
    def capacity(self) -> int:
        """Tokens of text that the text encoder takes at once."""
        return self.max_length - self.n_markers

    def encode(self, text: str) -> list[int]:
        """The ids of a text of any length, without opening, closing or padding ids."""
        return [token for token, _ in self.locate(text)]

    def locate(self, text: str) -> list[tuple[int, int]]:
        """The same ids, each with the index of the last character of `text` that it stands for."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"half a surrogate pair at character {error.start} of a prompt", expected="valid Unicode text"
            ) from error
        with _failures("the bundle's tokenizer.json fails on a prompt"):
            found = self._backend.encode(text, add_special_tokens=False)
        return [(token, max(end - 1, 0)) for token, (_, end) in zip(found.ids, found.offsets, strict=True)]

    def holds(self, text: str) -> bool:
        """Whether all of a text is one token that was added to the vocabulary, such as `<cat-toy>`."""
        found = self.encode(text)
        return len(found) == 1 and found[0] in self._backend.get_added_tokens_decoder()


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turns the library's errors into ours. It raises nothing narrower than Exception, and panics are none of these."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleError(
            f"{what} ({str(error)[:200]})", expected="a tokenizer.json", hint="export the bundle again"
        ) from error


def _read(path: Path) -> Backend:
    """The file's tokenizer, with nothing cut or padded."""
    from tokenizers import Tokenizer as Backend  # here: 13 ms that `import latentrt` need not take

    if not path.is_file():
        raise BundleError(f"no file {path}", expected="a tokenizer.json", hint="export the bundle again")
    with _failures(f"{path} cannot be read"):
        backend = Backend.from_file(str(path))
    backend.no_truncation()  # a tokenizer that was used before it was saved keeps its last settings
    backend.no_padding()
    return backend


def _frame(backend: Backend, path: Path) -> tuple[int | None, int]:
    """The opening and the closing id: what the tokenizer makes of an empty text."""
    with _failures(f"{path} fails on an empty text"):
        ids = backend.encode("").ids
    match ids:
        case [int(bos_id), int(eos_id)]:
            return bos_id, eos_id
        case [int(eos_id)]:
            return None, eos_id
        case _:
            raise BundleError(
                f"{path} encodes an empty text as {ids}", expected="a closing id, with or without an opening one"
            )
