"""How ``visemes.npz`` was made: synthetic speech with exact times in, the weights out. Not needed to run the product.

Needs torch and Debian's ``flite festival festvox-kdlpc16k festvox-kallpc16k festvox-us-slt-hts festvox-italp16k festvox-ru
festvox-czech-machac festvox-czech-krb libespeak-ng1 fortunes fortunes-it fortunes-de fortunes-es fortunes-ru fortunes-cs
fortunes-pl``.

    python train_visemes.py speak FOLDER    # about an hour of speech, and what the product's own ears make of it
    python train_visemes.py train FOLDER visemes.npz
"""

from __future__ import annotations

import ctypes
import itertools
import random
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
import torch
from numpy.typing import NDArray
from torch import nn

from model_store.engine import SPEECH_RATE, ArraySpeech
from model_store.portrait.phonemes import VISEMES
from model_store.portrait.speech import BLOCK_HOPS, CONTEXT_HOPS, HOP, LOOK_AHEAD_HOPS, MELS, Heard, Listener
from model_store.portrait.visemes import features

Sound = NDArray[np.float32]
Times = list[tuple[float, float, str]]
"""Start and end in seconds, and the synthesiser's own name of the phone."""

WINDOW_HOPS = BLOCK_HOPS + 2 * CONTEXT_HOPS
FORTUNES = Path("/usr/share/games/fortunes")
TEXTS = {
    "en": ["literature", "science", "people", "food", "love", "education", "wisdom", "work", "platitudes", "pets"],
    "it": ["it/*", "leggi", "formiche"],
    "de": ["de/sprichworte", "de/zitate", "de/murphy"],
    "es": ["es/*"],
    "ru": ["ru/*"],
    "cs": ["cs/citat*", "cs/wikiquote", "cs/pratchett"],
    "pl": ["pl/*"],
    "pt": ["brasil"],
}
ESPEAK = {
    "en": ["en-us", "en-us+m3", "en-us+f3", "en-us+klatt", "en-us+f5", "en-us+m7", "en-029+m1", "en-gb-x-rp+m5"],
    **{language: [f"{language}+f2", f"{language}+m4"] for language in ("it", "de", "es", "ru", "cs", "pl", "pt")},
}
FESTIVAL = {  # voice: language, encoding of its text, how many sentences
    "ked_diphone": ("en", "utf-8", 39),
    "kal_diphone": ("en", "utf-8", 14),
    "cmu_us_slt_arctic_hts": ("en", "utf-8", 34),
    "lp_diphone": ("it", "latin-1", 39),
    "msu_ru_nsh_clunits": ("ru", "utf-8", 25),
    "czech_machac": ("cs", "iso-8859-2", 20),
    "czech_krb": ("cs", "iso-8859-2", 20),
}

ARPABET = {
    "PP": "p b m em", "FF": "f v", "TH": "th dh", "DD": "t d n l en el dx nx", "kk": "k g ng hh", "SS": "s z",
    "CH": "sh zh ch jh", "RR": "r er", "aa": "aa ae ah ay aw", "ei": "ey", "E": "eh ax", "I": "iy ih y ix", "O": "ao ow oy",
    "U": "uw uh w ux", "sil": "pau sil",
}  # fmt: skip
IPA = {
    "PP": "pbmɓβ", "FF": "fvʋɱɸ", "TH": "θð", "DD": "tdnlɾɲɳʈɖɭʎɫ", "kk": "kgɡŋxɣhɦcɟqħʔχ", "SS": "sz", "CH": "ʃʒɕʑʂʐç",
    "RR": "rɹʁʀɻɽ", "aa": "aɑæʌɐ", "E": "eɛəɜɚø", "I": "iɪᵻɨyj", "O": "oɔɒœ", "U": "uʊwʉɯʏ",
}  # fmt: skip
SAMPA = {
    "PP": "p b m pp bb mm", "FF": "f v ff vv", "DD": "t d n l tt dd nn ll n~ JJ LL J L d~ t~", "kk": "k g x h kk gg hh G N n* x*",
    "SS": "s z ss zz ts dz c", "CH": "S Z tS dZ sh zh ch sch s~ z~ c~", "RR": "r rr R r~ r~*", "I": "j",
}  # fmt: skip


def viseme(phone: str, kind: str) -> str:
    """The viseme of a synthesiser's phone; '' if it has none."""
    if kind == "arpabet":
        return next((v for v, phones in ARPABET.items() if phone.lower() in phones.split()), "")
    if phone in ("", "sil", "pau", "#", "_", "H#"):
        return "sil"
    if kind == "sampa":
        found = next((v for v, phones in SAMPA.items() if phone in phones.split()), "")
        vowel = {"a": "aa", "e": "E", "i": "I", "y": "I", "o": "O", "u": "U", "w": "U"}.get(phone[0].lower(), "")
        return found or ("U" if phone == "ur" else "aa" if phone == "ae" else vowel)
    bare = "".join(c for c in unicodedata.normalize("NFD", phone) if unicodedata.category(c) in ("Ll", "Lo"))
    if bare.startswith("eɪ"):
        return "ei"
    if bare[:2] in ("tʃ", "dʒ", "tɕ", "dʑ", "tʂ", "dʐ"):
        return "CH"
    if bare[:2] in ("ts", "dz"):
        return "SS"
    bare = bare[1:] if len(bare) > 1 and bare[0] == "j" else bare
    return next((v for v, letters in IPA.items() if bare and bare[0] in letters), "sil" if not bare else "")


def sentences(language: str, chance: random.Random) -> list[str]:
    """Plain sentences of 35 to 110 letters, shuffled."""
    found: set[str] = set()
    paths = [p for pattern in TEXTS[language] for p in FORTUNES.glob(pattern) if p.is_file() and p.suffix not in (".dat", ".u8")]
    for text in (path.read_text("utf-8", errors="ignore") for path in paths):
        for piece in re.split(r"(?<=[.!?])\s", " ".join(re.sub(r"--.*", "", text).replace("\n%\n", ". ").split())):
            if (
                35 < len(piece) < 110
                and re.fullmatch(r"[^\W\d_A-Z]?[\w\s,.;:!?'’-]+", piece)
                and not re.search(r"\d|_|[A-Z]{3}", piece)
            ):
                found.add(piece)
    ordered = sorted(found)
    chance.shuffle(ordered)
    return ordered


def flite(voice: str, stretch: float, text: str) -> tuple[Sound, int, Times]:
    """One sentence by flite."""
    wav = "/tmp/visemes.wav"
    command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch}", "-psdur", "-t", text, "-o", wav]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    ends = [(name, float(end)) for name, end in (token.rsplit(":", 1) for token in printed.split())]
    return *sf.read(wav, dtype="float32"), _times(ends)


def festival(voice: str, encoding: str, text: str) -> tuple[Sound, int, Times]:
    """One sentence by festival."""
    text = text.replace('"', "")
    script = f'(voice_{voice})(set! u (utt.synth (Utterance Text "{text}")))'
    script += '(utt.save.wave u "/tmp/visemes.wav" "riff")(utt.save.segs u "/tmp/visemes.segs")'
    Path("/tmp/visemes.scm").write_bytes(script.encode(encoding, "ignore"))
    subprocess.run(["festival", "-b", "/tmp/visemes.scm"], capture_output=True, check=True, timeout=120)
    rows = [line.split() for line in Path("/tmp/visemes.segs").read_text(errors="ignore").splitlines()]
    return *sf.read("/tmp/visemes.wav", dtype="float32"), _times([(row[2], float(row[0])) for row in rows if len(row) == 3])


def _times(ends: list[tuple[str, float]]) -> Times:
    return [(before, end, name) for (name, end), before in zip(ends, [0.0, *(end for _, end in ends)], strict=False)]


class _Event(ctypes.Structure):
    class _Id(ctypes.Union):
        _fields_ = (("number", ctypes.c_int), ("string", ctypes.c_char * 8), ("name", ctypes.c_char_p))

    _fields_ = (
        ("type", ctypes.c_int), ("uid", ctypes.c_uint), ("text", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_ms", ctypes.c_int), ("sample", ctypes.c_int), ("user", ctypes.c_void_p), ("id", _Id),
    )  # fmt: skip


class Espeak:
    """espeak-ng's library, with its phoneme events (IPA)."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self._rate = self._library.espeak_Initialize(2, 0, None, 1 | 2)

    def __call__(self, voice: str, rate: int, pitch: int, text: str) -> tuple[Sound, int, Times]:
        """One sentence."""
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice}")
        self._library.espeak_SetParameter(1, rate, 0)
        self._library.espeak_SetParameter(3, pitch, 0)
        sound: list[NDArray[np.int16]] = []
        phones: list[tuple[float, str]] = []

        def receive(samples: ctypes.Array[ctypes.c_short], count: int, events: ctypes.Array[_Event]) -> int:
            if samples and count > 0:
                sound.append(np.ctypeslib.as_array(samples, (count,)).copy())
            k = 0
            while events[k].type:
                if events[k].type == 7:
                    phones.append((events[k].audio_ms / 1000, events[k].id.string.decode(errors="ignore")))
                k += 1
            return 0

        kept = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))(receive)
        self._library.espeak_SetSynthCallback(kept)
        self._library.espeak_Synth(text.encode(), len(text.encode()) + 1, 0, 0, 0, 1, None, None)
        wave = np.concatenate(sound).astype(np.float32) / np.float32(32768)
        starts = [*phones, (len(wave) / self._rate, "")]
        return wave, self._rate, [(a, b, name) for (a, name), (b, _) in itertools.pairwise(starts) if b > a]


def coloured(count: int, fall: float, chance: np.random.Generator) -> Sound:
    """Noise of unit size whose amplitude falls as frequency to the power of ``fall``."""
    spectrum = np.fft.rfft(chance.standard_normal(count)) / np.arange(1, count // 2 + 2) ** fall
    noise = np.fft.irfft(spectrum, count)
    return np.asarray(noise / (noise.std() + 1e-9), np.float32)


def roughen(sound: Sound, times: Times, chance: np.random.Generator) -> tuple[Sound, Times]:
    """Another speaker in another room: pitch and formants moved, tilted, band-limited, echoing, at another level."""
    if chance.random() < 0.5:
        factor = chance.uniform(0.86, 1.16)
        sound = soxr.resample(sound, SPEECH_RATE * factor, SPEECH_RATE).astype(np.float32)
        times = [(a / factor, b / factor, name) for a, b, name in times]
    count = len(sound)
    if chance.random() < 0.35:
        hertz = np.fft.rfftfreq(count, 1 / SPEECH_RATE)
        gain = (np.maximum(hertz, 80) / 1000) ** chance.uniform(-0.5, 0.5)
        if chance.random() < 0.4:
            gain /= 1 + (hertz / chance.uniform(3000, 6500)) ** 8
        sound = np.fft.irfft(np.fft.rfft(sound) * gain, count).astype(np.float32)
    if chance.random() < 0.3:
        tail = int(chance.uniform(0.1, 0.5) * SPEECH_RATE)
        room = chance.standard_normal(tail) * 10 ** (-3 * np.arange(tail) / tail)
        room *= chance.uniform(0.02, 0.25) / np.sqrt((room**2).sum())
        room[0] += 1
        size = count + tail
        sound = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(room, size), size)[:count].astype(np.float32)
    level = 0.05 * 10 ** (chance.uniform(-4, 4) / 20) / (np.sqrt(np.mean(sound**2)) + 1e-9)
    return (sound * level).astype(np.float32), times


def recite(said: list[tuple[Sound, int, Times]], kind: str, chance: np.random.Generator) -> tuple[Sound, NDArray[np.int8]]:
    """Sentences one after the other with pauses and stretches of noise, and the viseme of every 10 ms (-1: none)."""
    parts: list[Sound] = []
    spans: list[tuple[float, float, str]] = []
    now = 0.0
    for wave, rate, times in said:
        sound, times = roughen(soxr.resample(wave, rate, SPEECH_RATE).astype(np.float32), times, chance)  # noqa: PLW2901
        before = "sil"
        for a, b, name in times:
            # espeak names nothing for the tails of some sounds.
            before = before if not name and b - a < 0.05 else viseme(name, kind)
            spans.append((now + a, now + b, before))
        parts += [sound, np.zeros(int(chance.uniform(0.05, 0.7) * SPEECH_RATE), np.float32)]
        now += (len(parts[-2]) + len(parts[-1])) / SPEECH_RATE
    whole = np.concatenate(parts)
    for start in range(0, len(whole), 10 * SPEECH_RATE):
        piece = whole[start : start + 10 * SPEECH_RATE]
        if chance.random() < 0.6:
            noise = coloured(len(piece), chance.choice([0.0, 0.5, 1.0]), chance)
            if chance.random() < 0.25:
                noise = hum(len(piece), chance)
            piece += noise * np.float32(0.05 * 10 ** (-chance.uniform(8, 40) / 20))
    labels = np.zeros(int(now * 100) + 1, np.int8)
    for a, b, name in spans:
        labels[round(a * 100 - 0.5) : round(b * 100 - 0.5)] = VISEMES.index(name) if name else -1
    return np.clip(whole, -1, 1), labels


def hum(count: int, chance: np.random.Generator) -> Sound:
    """A steady tone with overtones, of unit size."""
    t = np.arange(count) / SPEECH_RATE
    hertz = chance.choice([50, 60, 87, 100, 120, 300, 440, 1000])
    tone = sum(np.sin(2 * np.pi * hertz * k * t + chance.uniform(0, 6)) / k ** chance.uniform(0.5, 2.5) for k in range(1, 12))
    return np.asarray(tone / np.std(tone), np.float32)


def not_speech(chance: np.random.Generator) -> tuple[Sound, NDArray[np.int8]]:
    """Five minutes of noises, hums, clicks and breaths that begin and end: all of it rest."""
    parts: list[Sound] = []
    for kind in range(110):
        count = int(chance.uniform(0.05, 4.0) * SPEECH_RATE)
        sound = coloured(count, chance.choice([0.0, 0.5, 1.0]), chance)
        if kind % 4 == 1:
            sound = hum(count, chance)
        elif kind % 4 == 2:
            sound = np.where(chance.random(count) < 3e-4, np.float32(20.0), np.float32(0.0))
        elif kind % 4 == 3:
            sound = sound * np.hanning(count).astype(np.float32)
        gap = np.zeros(int(chance.uniform(0.02, 1.5) * SPEECH_RATE), np.float32)
        parts += [sound * np.float32(10 ** (-chance.uniform(22, 60) / 20)), gap]
    whole = np.concatenate(parts)
    whole += (1e-4 * chance.standard_normal(len(whole))).astype(np.float32)
    return np.clip(whole, -1, 1), np.zeros(len(whole) // 160 + 1, np.int8)


def listen(folder: Path, name: str, sound: Sound, labels: NDArray[np.int8]) -> None:
    """Keep what the product hears in a recital, window by window, with the visemes of its hops."""
    listener = Listener(ArraySpeech(sound))
    windows = -(-len(sound) // (BLOCK_HOPS * HOP))
    lead, tail = 2 * CONTEXT_HOPS, 4 * WINDOW_HOPS
    padded = np.concatenate([np.zeros(lead, np.int8), labels, np.zeros(tail, np.int8)])
    heard = [listener.hear(window) for window in range(windows)]
    first = [lead + 2 * (window * BLOCK_HOPS + LOOK_AHEAD_HOPS - CONTEXT_HOPS) for window in range(windows)]
    np.savez(
        folder / f"{name}.npz",
        posteriors=np.stack([h.posteriors for h in heard]).astype(np.float16),
        mels=np.stack([h.mels for h in heard]).astype(np.float16),
        visemes=np.stack([padded[f : f + 2 * WINDOW_HOPS] for f in first]),
    )
    print(f"{name}: {len(sound) / SPEECH_RATE:.0f} s", flush=True)


def speak(folder: Path) -> None:
    """Make all recitals and listen to them."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, numbers = random.Random(7), np.random.default_rng(5)
    texts = {language: sentences(language, chance) for language in TEXTS}
    espeak = Espeak()

    def recital(name: str, language: str, count: int, kind: str, say: Callable[[str], tuple[Sound, int, Times]]) -> None:
        said = [say(text) for text in chance.sample(texts[language], min(count, len(texts[language])))]
        listen(folder, name, *recite(said, kind, numbers))

    for voice in ("awb", "slt", "kal16"):
        for stretch, count in ((1.0, 51), (0.75, 20), (1.15, 11)):
            recital(f"flite-{voice}-{stretch}", "en", count, "arpabet", partial(flite, voice, stretch))
    for language, voices in ESPEAK.items():
        for voice in voices:
            rate, pitch = chance.choice([150, 165, 175, 195]), chance.randint(25, 75)
            count = 20 if language == "en" else 12
            recital(f"espeak-{voice}", language, count, "ipa", partial(espeak, voice, rate, pitch))
    for voice, (language, encoding, count) in FESTIVAL.items():
        kind = "arpabet" if language == "en" else "sampa"
        recital(f"festival-{voice}", language, count, kind, partial(festival, voice, encoding))
    listen(folder, "not-speech", *not_speech(numbers))


class Network(nn.Module):
    """The network of ``model_store/portrait/visemes.py``, for learning."""

    def __init__(self, inputs: int, width: int = 56) -> None:
        super().__init__()
        self.a = nn.Conv1d(inputs, width, 1)
        self.b, self.c, self.d = (nn.Conv1d(width, width, 5, padding=2 * n, dilation=n) for n in (1, 2, 4))
        self.o = nn.Conv1d(width, 2 * len(VISEMES), 1)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[windows, hops, inputs]`` -> logits ``[windows, 2 * hops, visemes]``."""
        x = torch.relu(self.a(x.transpose(1, 2)))
        for layer in (self.b, self.c, self.d):
            x = x + torch.relu(layer(self.drop(x)))
        return self.o(x).transpose(1, 2).reshape(len(x), -1, len(VISEMES))


def train(folder: Path, target: Path, epochs: int = 36) -> None:
    """Learn from the recitals in ``folder``; about two minutes of one core."""
    torch.manual_seed(0)
    inputs, wanted = [], []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as stored:
            posteriors, mels = stored["posteriors"].astype(np.float32), stored["mels"].astype(np.float32)
            inputs += [features(Heard(*pair)) for pair in zip(posteriors, mels, strict=True)]
            wanted.append(stored["visemes"].astype(np.int64))
    raw, y = np.stack(inputs), torch.from_numpy(np.concatenate(wanted))
    mean, deviation = raw.mean(axis=(0, 1)), raw.std(axis=(0, 1)) + np.float32(0.05)
    x = torch.from_numpy((raw - mean) / deviation)
    network, batch, spectrum = Network(x.shape[2]), 24, x.shape[2] - 2 * MELS
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * (len(x) // batch) + 1)
    weight = torch.ones(len(VISEMES))
    weight[VISEMES.index("PP")], weight[VISEMES.index("FF")] = 1.3, 1.6
    judge = nn.CrossEntropyLoss(weight, ignore_index=-1, label_smoothing=0.02)
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(x))
        for chosen in order[: len(x) // batch * batch].split(batch):
            seen = x[chosen].clone()
            tone = torch.randn(batch, 1, MELS) * 0.25
            seen[:, :, spectrum:] += torch.cat([tone, tone], -1) + torch.randn(batch, 1, 1) * 0.15
            # Now and then one of the two witnesses is silent, so that neither is trusted alone.
            witness = torch.rand(batch)
            seen[witness < 0.08, :, spectrum:] = 0
            seen[(witness > 0.08) & (witness < 0.14), :, :spectrum] = 0
            loss = judge(network(seen)[:, 24:-24].flatten(0, 1), y[chosen][:, 24:-24].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch}: {total / (len(x) // batch):.3f}", flush=True)
    weights = {"mean": mean, "deviation": deviation}
    for name, value in network.state_dict().items():
        layer, part = name.split(".")
        weights[f"{layer}.{'kernel' if part == 'weight' else part}"] = (
            value.numpy().transpose(2, 1, 0) if value.ndim == 3 else value.numpy()
        )
    np.savez_compressed(target, **{name: value.astype(np.float16) for name, value in weights.items()})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["speak", folder]:
            speak(Path(folder))
        case ["train", folder, target]:
            train(Path(folder), Path(target))
        case _:
            sys.exit(__doc__)
