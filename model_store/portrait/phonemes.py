"""The sounds that lips can tell apart: viseme classes, and how the recogniser's labels fall into groups.

The recogniser's 191 labels are IPA of many notations (English, Korean, tones, diacritics). A label belongs to the group
of its first base letter; labels without one (tones, diacritics) belong to ``other``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

VISEMES = ("sil", "PP", "FF", "TH", "DD", "kk", "SS", "CH", "RR", "aa", "ei", "E", "I", "O", "U")
"""What one frame of speech looks like: rest; P/B/M; F/V; TH; T/D/N/L; K/G/NG/H; S/Z; SH/CH/J; R; the vowels of "father",
"face", "bed", "see", "caught", "two" (and W)."""

SIL, PP, FF, TH, DD, KK, SS, CH, RR, AA, EI, EH, IY, OH, UW = range(len(VISEMES))

_LETTERS: dict[str, str] = {
    "stop_lips": "pbɓʙ",
    "m": "m",
    "teeth": "fvʋɱ",
    "lip_glide": "wɥɸβʍ",
    "open": "aɑæɐʌɒàãäå",
    "mid": "eɛəɘɜɝɚèẽ",
    "back": "oɔøœɵõɤ",
    "close_round": "uʊyʏʉũ",
    "close": "iɪjɨɯìĩǐɰ",
    "r": "rɹɾɻʀʁɽ",
    "l": "lɫʎɮ",
    "tongue_stop": "tdʈɖɗ",
    "n": "nɲɴñ",
    "hiss": "sz",
    "hush": "ʃʒɕʑʂʐçʝẑ",
    "dental": "θð",
    "velar": "kgɡxɣŋcɟχ",
    "breath": "hɦħʔ",
}

GROUPS = ("blank", "word", *_LETTERS, "diphthong_ei", "affricate", "other")
"""Groups of labels, in the order of the columns of :func:`group_matrix`."""


def _group(label: str) -> str:
    if label == "<blank>":
        return "blank"
    if label == "<wb>":
        return "word"
    if label == "eɪ":
        return "diphthong_ei"
    if label.startswith(("t͡", "d͡")):
        return "affricate"
    bare = "".join(c for c in unicodedata.normalize("NFC", label) if not unicodedata.combining(c))
    # "wa", "ja", "we": a glide and a vowel written as one label; the vowel is what lasts.
    if len(bare) > 1 and bare[0] == "j":
        bare = bare[1:]
    return next((name for name, letters in _LETTERS.items() if bare[:1] and bare[0] in letters), "other")


def group_matrix(labels: Sequence[str]) -> NDArray[np.float32]:
    """0/1 matrix ``[labels, groups]``: posteriors times it are group posteriors."""
    matrix = np.zeros((len(labels), len(GROUPS)), np.float32)
    for row, label in enumerate(labels):
        matrix[row, GROUPS.index(_group(label))] = 1.0
    return matrix
