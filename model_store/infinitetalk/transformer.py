"""The video transformer: Wan2.1 image-to-video (arXiv:2503.20314) with InfiniteTalk's audio attention (arXiv:2508.14033).

One forward predicts the velocity of one chunk's latent video from noise, picture, words and speech. Activations are
unbatched and token-major ``[N, dim]`` with N = T * h/2 * w/2; the residual stream has the weights' dtype, modulation and
head are fp32. ``state_dict()`` has exactly the public checkpoints' keys: Wan2.1-I2V-14B's and the InfiniteTalk adapter's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import (
    class_attention_map,
    eight_bit_attention,
    eight_bit_values,
    framewise_attention,
    layer_norm_modulate,
    layer_precision,
    qk_norm_rope_,
    qk_norm_rope_quantised,
    rms_norm,
    rope_1d,
    text_image_attention,
)
from model_store.infinitetalk.activations import Activation, activated, joined_norm, modulated_norm, rows
from model_store.infinitetalk.attention import EXACT, Attention, attend
from model_store.infinitetalk.audio_windows import FRAMES_PER_LATENT, WINDOW, latent_frames, latent_windows
from model_store.infinitetalk.embeddings import rotary_tables, time_sinusoid
from model_store.infinitetalk.memo import TensorMemo
from model_store.infinitetalk.people import key_positions, query_positions, token_masks
from model_store.infinitetalk.quantised import QuantisedLinear
from model_store.infinitetalk.step_skipping import KeptBlocks

PATCH = 2
"""Latent pixels along each side of a token; along time a token is one latent frame."""

_CONTEXTS_KEPT = 2  # guidance alternates between two of each kind: prompt and negative prompt, speech and silence

KeysValues = list[tuple[Tensor, Tensor]]
"""Keys and values of every block, each ``[..., dim]``."""


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the model; the defaults are the public 14B model's.

    Args:
        dim: width of the residual stream; ``num_heads`` heads of ``dim / num_heads``.
        ffn_dim: width inside the feed-forward layers.
        num_heads, num_layers: heads a block, blocks.
        freq_dim: width of the time step's sinusoid.
        text_dim, text_len: width of a text vector; rows that shorter texts are zero-padded to.
        in_dim, out_dim: channels of noise, mask and picture together (16 + 4 + 16); of the prediction.
        eps: of every norm but the image embedding's and the audio projection's.
        image_dim: width of a CLIP vector.
        audio_blocks, audio_channels: layers of the speech encoder that are heard, and their width.
        audio_hidden_dim: width inside the audio projection.
        audio_tokens, audio_dim: speech tokens a person and latent frame, and their width.
    """

    dim: int = 5120
    ffn_dim: int = 13824
    num_heads: int = 40
    num_layers: int = 40
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    in_dim: int = 36
    out_dim: int = 16
    eps: float = 1e-6
    image_dim: int = 1280
    audio_blocks: int = 12
    audio_channels: int = 768
    audio_hidden_dim: int = 512
    audio_tokens: int = 32
    audio_dim: int = 768

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads


class _Norm(nn.Module):
    """Holds the weight of an RMS norm, ``[dim]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


class _SelfAttention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = _Norm(dim), _Norm(dim)


class _CrossAttention(_SelfAttention):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.k_img, self.v_img = (nn.Linear(config.dim, config.dim) for _ in range(2))
        self.norm_k_img = _Norm(config.dim)


class _AudioCrossAttention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.q_linear = nn.Linear(config.dim, config.dim)
        self.kv_linear = nn.Linear(config.audio_dim, 2 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)


class _AudioProjection(nn.Module):
    """Speech vectors around each latent frame -> the tokens that the blocks attend to."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        vector = config.audio_blocks * config.audio_channels
        hidden = config.audio_hidden_dim
        self.proj1 = nn.Linear(WINDOW * vector, hidden)
        self.proj1_vf = nn.Linear((WINDOW + FRAMES_PER_LATENT - 1) * vector, hidden)
        self.proj2 = nn.Linear(hidden, hidden)
        self.proj3 = nn.Linear(hidden, config.audio_tokens * config.audio_dim)
        self.norm = nn.LayerNorm(config.audio_dim, eps=1e-5)
        self._tokens = config.audio_tokens

    def forward(self, windows: Tensor) -> Tensor:
        """[P, F, 5, 12, 768] -> [T, P * 32, 768], the people's tokens one after another."""
        first, later = latent_windows(windows.to(self.proj1.weight.dtype))
        hidden = torch.cat((self.proj1(first.flatten(2)), self.proj1_vf(later.flatten(2))), dim=1)
        tokens = self.proj3(F.relu(self.proj2(F.relu(hidden)))).unflatten(-1, (self._tokens, -1))
        normed: Tensor = self.norm(tokens)
        return normed.transpose(0, 1).flatten(1, 2)


class _ImageEmbedding(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(config.image_dim, eps=1e-5),
            nn.Linear(config.image_dim, config.image_dim),
            nn.GELU(),
            nn.Linear(config.image_dim, config.dim),
            nn.LayerNorm(config.dim, eps=1e-5),
        )


class _Head(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.head = nn.Linear(config.dim, PATCH * PATCH * config.out_dim)


class TokenShare(Protocol):
    """How one process of several takes its part of the tokens; see ``parallel``."""

    def split(self, tokens: Tensor, frames: int) -> Tensor:
        """This process's part ``[N / processes, ...]`` of ``[N, ...]``: an equal part of every latent frame."""

    def join(self, tokens: Tensor, frames: int) -> Tensor:
        """The inverse of :meth:`split`, in every process."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int, how: Attention, near: Sequence[int]) -> Tensor:
        """``attention.attend`` of this process's queries to the keys of all, each ``[N / processes, dim]``."""


@dataclass(frozen=True)
class _Context:
    """What every block of one forward sees besides the tokens: tables, and for each block its keys and values."""

    share: TokenShare | None
    how: Attention
    near: tuple[int, int]
    cos: Tensor
    sin: Tensor
    text: KeysValues
    image: KeysValues
    audio: KeysValues | None
    masks: Tensor | None


class _Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)
        self.self_attn = _SelfAttention(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = _CrossAttention(config)
        self.audio_cross_attn = _AudioCrossAttention(config)
        self.norm_x = nn.LayerNorm(config.dim, eps=config.eps)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, config.dim)
        )
        self._heads = config.num_heads
        self._eps = config.eps
        self.bits: torch.dtype | None = None
        """The 8-bit type that the linear layers multiply in, see ``InfiniteTalkTransformer.multiply_in_eight_bits``."""

    def forward(self, x: Tensor, h: Activation, modulation: Tensor, context: _Context, index: int) -> tuple[Tensor, Tensor]:
        """One block, without its last residual: the caller joins that with the next block's first norm.

        Args:
            x: residual stream ``[N, dim]``.
            h: its modulated first norm ``[N, dim]``.
            modulation: this block's shift, scale and gate, twice, fp32 ``[6, dim]``.
            context: what is attended to.
            index: this block's place in ``context``.

        Returns:
            x before the feed-forward's residual, and the feed-forward's output, both ``[N, dim]``.
        """
        eps, bits = self._eps, self.bits
        attn = self.self_attn
        y, positions = self._attended(attn.q(h), attn.k(h), attn.v(h), context)
        y = attn.o(rows(y, bits))
        x, h = joined_norm(x, y, modulation[2], bits, weight=self.norm3.weight, bias=self.norm3.bias, eps=eps)

        cross = self.cross_attn
        q = rms_norm(cross.q(h), cross.norm_q.weight, eps)
        y = cross.o(rows(text_image_attention(q, *context.text[index], *context.image[index], self._heads), bits))
        if context.audio is not None:
            x, h = joined_norm(x, y, None, bits, weight=self.norm_x.weight, bias=self.norm_x.bias, eps=eps)
            q = self.audio_cross_attn.q_linear(h)
            if positions is not None:
                q = rope_1d(q, positions, self._heads)
            y = self.audio_cross_attn.proj(rows(framewise_attention(q, *context.audio[index], self._heads), bits))
        x, h = joined_norm(x, y, None, bits, shift=modulation[3], scale=modulation[4], eps=eps)
        return x, self.ffn[2](activated(self.ffn[0](h), bits))

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, context: _Context) -> tuple[Tensor, Tensor | None]:
        """What self-attention gives for q and k before their norm, and where the speakers are, if there are several."""
        heads, how, masks = self._heads, context.how, context.masks
        turn = (self.self_attn.norm_q.weight, self.self_attn.norm_k.weight, context.cos, context.sin, heads, self._eps)
        if how == Attention(eight_bit=True) and masks is None and context.share is None:
            # Nobody else needs q and k in 16 bits.
            qk = qk_norm_rope_quantised(q, k, *turn)
            return eight_bit_attention(qk, eight_bit_values(v, heads), heads, out_dtype=v.dtype), None
        qk_norm_rope_(q, k, *turn)
        attention = attend if context.share is None else context.share.attention
        y = attention(q, k, v, heads, how, context.near)
        if masks is None:
            return y, None
        return y, query_positions(class_attention_map(q, k[: masks.shape[1]], masks, heads))


class InfiniteTalkTransformer(nn.Module):
    """The transformer; see the module's text. Build it on ``torch.device("meta")`` and load weights with ``loading``."""

    def __init__(self, config: TransformerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TransformerConfig()
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, kernel_size=(1, PATCH, PATCH), stride=(1, PATCH, PATCH))
        self.text_embedding = nn.Sequential(nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.img_emb = _ImageEmbedding(config)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.head = _Head(config)
        self.audio_proj = _AudioProjection(config)
        self._text_memo = TensorMemo[KeysValues](_CONTEXTS_KEPT)
        self._image_memo = TensorMemo[KeysValues](_CONTEXTS_KEPT)
        self._audio_memo = TensorMemo[KeysValues](_CONTEXTS_KEPT)
        self._rotary: tuple[tuple[int, int, int], Tensor, Tensor] | None = None
        self.before_block: Callable[[int], None] | None = None
        """Called with a block's place before its weights are used; ``offload`` brings them onto the device then."""
        self.share: TokenShare | None = None
        """Set where several processes compute one forward together; for one speaker."""
        self.register_load_state_dict_post_hook(lambda module, _: module.forget_contexts())  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def forward(
        self,
        latents: Tensor,
        timestep: float,
        text: Tensor,
        clip: Tensor,
        condition: Tensor,
        audio: Tensor | None = None,
        person_masks: Tensor | None = None,
        kept: KeptBlocks | None = None,
        skip: bool = False,
        how: Attention = EXACT,
    ) -> Tensor:
        """The predicted velocity.

        Keys and values of ``text``, ``clip`` and ``audio`` are remembered: pass the same tensor objects at every step of
        a chunk (of a whole job, for text and picture) and they are computed once. See :class:`TensorMemo`.

        Args:
            latents: noisy latent video ``[16, T, h, w]``, h and w even.
            timestep: 0..1000, 1000 is pure noise.
            text: the text encoder's output ``[n, text_dim]``, n <= ``text_len``.
            clip: the image encoder's output ``[257, image_dim]``.
            condition: mask and picture ``[20, T, h, w]``, see ``condition.reference_condition``.
            audio: speech windows of P people ``[P, F, 5, 12, 768]``, F = 4 (T - 1) + 1, see ``audio_windows``. Zeros
                are silence; None leaves the audio attention out, which is the plain image-to-video model.
            person_masks: where each person is, then the background, ``[P + 1, h, w]``. Needed when P > 1, not read else.
            kept: where what the blocks add is kept.
            skip: add what ``kept`` holds instead of running the blocks, see ``step_skipping``.
            how: tokens attend to one another.

        Returns:
            float32 ``[out_dim, T, h, w]``.

        Raises:
            ValueError: shapes that do not belong together.
        """
        self._check(latents, text, clip, condition, audio, person_masks)
        frames, height, width = latents.shape[1], latents.shape[2] // PATCH, latents.shape[3] // PATCH
        grid = (frames, height, width)
        device = self.patch_embedding.weight.device

        e, e0 = self._time_modulation(timestep)
        shift, scale = self.head.modulation.float().squeeze(0) + e
        x = self._patchify(torch.cat((latents.to(device), condition.to(device, latents.dtype))))
        if self.share is not None:
            x = self.share.split(x, frames)
        if skip and kept is not None and kept.added is not None:
            x = x + kept.added
        else:
            patches = x
            x = self._through_blocks(x, e0, self._context(grid, text, clip, audio, person_masks, how))
            if kept is not None:
                kept.added = x - patches
        if self.share is not None:
            x = self.share.join(x, frames)
        eps = self.config.eps
        h = layer_norm_modulate(x, shift, scale, eps, out_dtype=torch.float32)
        out = F.linear(h, self.head.head.weight.float(), self.head.head.bias.float())
        out = out.view(*grid, PATCH, PATCH, self.config.out_dim)
        return out.permute(5, 0, 1, 3, 2, 4).reshape(self.config.out_dim, frames, height * PATCH, width * PATCH)

    def time_modulation(self, timestep: float) -> Tensor:
        """The first modulation of every block at a time 0..1000, fp32 ``[6, dim]``: all that the blocks know of the time."""
        return self._time_modulation(timestep)[1]

    def multiply_in_eight_bits(self) -> None:
        """Have the blocks' large linear layers multiply in the 8-bit type of their weights, not only keep them in it.

        Which layers do is ``kernels.layer_precision``'s to say; the operation before each writes its result in that type.

        Raises:
            ValueError: a layer's weight is not in 8 bits, or two are in different types.
        """
        types = {
            layer.data.dtype if isinstance(layer, QuantisedLinear) else torch.bfloat16
            for name, layer in self.named_modules()
            if isinstance(layer, QuantisedLinear | nn.Linear) and layer_precision(name) == "eight_bit"
        }
        if len(types) != 1 or torch.bfloat16 in types:
            raise ValueError(f"the weights must be in one 8-bit type to be multiplied in it, not {sorted(map(str, types))}")
        (bits,) = types
        for block in self._blocks:
            block.bits = bits

    def _context(
        self,
        grid: tuple[int, int, int],
        text: Tensor,
        clip: Tensor,
        audio: Tensor | None,
        person_masks: Tensor | None,
        how: Attention,
    ) -> _Context:
        device = self.patch_embedding.weight.device
        cos, sin = self._rotary_tables(grid)
        if self.share is not None:
            cos, sin = self.share.split(cos, grid[0]), self.share.split(sin, grid[0])
        several = audio is not None and audio.shape[0] > 1 and person_masks is not None
        return _Context(
            self.share,
            how,
            (grid[2], cos.shape[0] // grid[0]),
            cos,
            sin,
            self._text_memo.get(text, self._text_keys),
            self._image_memo.get(clip, self._image_keys),
            None if audio is None else self._audio_memo.get(audio, self._audio_keys),
            token_masks(person_masks.to(device), *grid[1:]) if several and person_masks is not None else None,
        )

    def _through_blocks(self, x: Tensor, e0: Tensor, context: _Context) -> Tensor:
        eps = self.config.eps
        modulations = [block.modulation.float().squeeze(0) + e0 for block in self._blocks]
        first = self._blocks[0]
        h = modulated_norm(x, modulations[0][0], modulations[0][1], eps, first.bits)
        for index, block in enumerate(self._blocks_in_turn()):
            x, y = block(x, h, modulations[index], context, index)
            following = modulations[min(index + 1, len(modulations) - 1)]  # the last block's h is not used
            x, h = joined_norm(x, y, modulations[index][5], block.bits, shift=following[0], scale=following[1], eps=eps)
        return x

    def _blocks_in_turn(self) -> Iterator[_Block]:
        """The blocks, each ready to be computed with."""
        for index, block in enumerate(self._blocks):
            if self.before_block is not None:
                self.before_block(index)
            yield block

    @property
    def _blocks(self) -> list[_Block]:
        return cast(list[_Block], list(self.blocks))

    def forget_contexts(self) -> None:
        """Drop remembered keys and values; needed after the weights were changed by other means than loading or moving."""
        for memo in (self._text_memo, self._image_memo, self._audio_memo):
            memo.clear()

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]  # torch's own signature has no types
        self.forget_contexts()
        self._rotary = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _time_modulation(self, timestep: float) -> tuple[Tensor, Tensor]:
        """e [dim] and e0 [6, dim], both fp32 whatever the weights' dtype."""

        def linear(layer: nn.Module, x: Tensor) -> Tensor:
            assert isinstance(layer, nn.Linear)
            return F.linear(x, layer.weight.float(), layer.bias.float())

        sinusoid = time_sinusoid(float(timestep), self.config.freq_dim).to(self.patch_embedding.weight.device)
        e = linear(self.time_embedding[2], F.silu(linear(self.time_embedding[0], sinusoid)))
        return e, linear(self.time_projection[1], F.silu(e)).view(6, -1)

    def _rotary_tables(self, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        if self._rotary is None or self._rotary[0] != grid:
            device = self.patch_embedding.weight.device
            cos, sin = rotary_tables(grid, self.config.head_dim)
            self._rotary = (grid, cos.to(device), sin.to(device))
        return self._rotary[1:]

    def _patchify(self, x: Tensor) -> Tensor:
        """[C, T, h, w] -> [N, dim]: the strided convolution as one matrix product."""
        patches = x.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).permute(1, 2, 4, 0, 3, 5).flatten(3).flatten(0, 2)
        weight = self.patch_embedding.weight
        return F.linear(patches.to(weight.dtype), weight.flatten(1), self.patch_embedding.bias)

    def _text_keys(self, text: Tensor) -> KeysValues:
        weight = self.text_embedding[0].weight
        assert isinstance(weight, Tensor)
        padded = F.pad(text.to(weight.device, weight.dtype), (0, 0, 0, self.config.text_len - text.shape[0]))
        embedded = self.text_embedding(padded)
        return [
            (rms_norm(attn.k(embedded), attn.norm_k.weight, self.config.eps), attn.v(embedded))
            for attn in (block.cross_attn for block in self._blocks_in_turn())
        ]

    def _image_keys(self, clip: Tensor) -> KeysValues:
        weight = self.patch_embedding.weight
        embedded = self.img_emb.proj(clip.to(weight.device, weight.dtype))
        return [
            (rms_norm(attn.k_img(embedded), attn.norm_k_img.weight, self.config.eps), attn.v_img(embedded))
            for attn in (block.cross_attn for block in self._blocks_in_turn())
        ]

    def _audio_keys(self, audio: Tensor) -> KeysValues:
        """Keys and values [T, P * 32, dim]; with several people the keys stand at their speakers' places."""
        people = audio.shape[0]
        tokens = self.audio_proj(audio.to(self.patch_embedding.weight.device))
        pairs: KeysValues = []
        for block in self._blocks_in_turn():
            k, v = block.audio_cross_attn.kv_linear(tokens).chunk(2, dim=-1)
            if people > 1:
                positions = key_positions(people, self.config.audio_tokens, k.device).repeat(k.shape[0])
                k = rope_1d(k.flatten(0, 1), positions, self.config.num_heads).view(k.shape)
            pairs.append((k.contiguous(), v.contiguous()))
        return pairs

    def _check(
        self, latents: Tensor, text: Tensor, clip: Tensor, condition: Tensor, audio: Tensor | None, masks: Tensor | None
    ) -> None:
        config = self.config
        _, frames, height, width = latents.shape
        wanted = (config.in_dim - latents.shape[0], frames, height, width)
        if height % PATCH or width % PATCH:
            raise ValueError(f"latents {list(latents.shape)}: height and width must be even")
        if tuple(condition.shape) != wanted:
            raise ValueError(
                f"condition {list(condition.shape)} does not fit latents {list(latents.shape)}: {list(wanted)} is needed"
            )
        if text.ndim != 2 or text.shape[0] > config.text_len or text.shape[1] != config.text_dim:
            raise ValueError(f"text {list(text.shape)}: at most [{config.text_len}, {config.text_dim}] is read")
        if clip.ndim != 2 or clip.shape[1] != config.image_dim:
            raise ValueError(f"clip {list(clip.shape)}: [257, {config.image_dim}] is needed")
        if audio is None:
            return
        vector = (WINDOW, config.audio_blocks, config.audio_channels)
        if audio.ndim != 5 or tuple(audio.shape[2:]) != vector or latent_frames(audio.shape[1]) != frames:
            raise ValueError(
                f"audio {list(audio.shape)} does not fit {frames} latent frames: "
                f"[P, {FRAMES_PER_LATENT * (frames - 1) + 1}, {', '.join(map(str, vector))}] is needed"
            )
        people = audio.shape[0]
        if people > 1 and self.share is not None:
            raise ValueError("several voices are not computed by several processes: their places need the whole picture")
        if people > 1 and (masks is None or tuple(masks.shape) != (people + 1, height, width)):
            got = "none" if masks is None else list(masks.shape)
            raise ValueError(
                f"person_masks {got}: {people} voices need masks [{people + 1}, {height}, {width}], the background last"
            )
