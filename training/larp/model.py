"""LARP's model: an audio tower and a text tower into one space, and the fusion of tracks into a playlist."""

from collections.abc import Sequence
from typing import cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5


def unit_head(head: nn.Linear, pooled: Tensor) -> Tensor:
    """Project and normalise to length 1, in float32 whatever the precision around it."""
    if torch.is_autocast_enabled(pooled.device.type):
        with torch.autocast(pooled.device.type, enabled=False):
            return F.normalize(head(pooled.float()), dim=-1)
    return F.normalize(head(pooled), dim=-1)


@torch.no_grad()
def spread(head: nn.Linear, pooled: Tensor) -> None:
    """Give the head of an untrained encoder outputs that differ: centre and scale `pooled` f32 [n, width] in it.

    The vectors of a random encoder share one large mean (cosines near 1), so their unit vectors tell tracks apart by
    nothing, and contrast starts on a plateau. With the mean taken out and each feature at unit variance over the
    training tracks, even random features place captions with common words near one another.
    """
    mean, deviation = pooled.mean(0), pooled.std(0).clamp(min=1e-4)
    head.weight.div_(deviation)
    head.bias.copy_(-(head.weight @ mean))


class AudioTower(nn.Module):
    """HTS-AT and its head: log-mel f32 [B, 1, 1001, 64] in dB -> unit vectors f32 [B, dims]."""

    def __init__(self, encoder: nn.Module, dims: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(cast(int, encoder.config.hidden_size), dims)

    def pooled(self, log_mel: Tensor) -> Tensor:
        """The encoder's answer before the head, f32 [B, width]."""
        pooled: Tensor = self.encoder(log_mel).pooler_output
        return pooled

    def forward(self, log_mel: Tensor) -> Tensor:
        """Encode clips."""
        return unit_head(self.head, self.pooled(log_mel))

    @torch.no_grad()
    def calibrate(self, mean: Tensor, variance: Tensor) -> None:
        """Set the input normalisation's running statistics, f32 [64] each.

        A tower from scratch then sees whitened log-mel from its first step, in evaluation and in its momentum
        copy too, instead of after the hundreds of steps that running averages would take.
        """
        norm = cast(nn.BatchNorm2d, self.encoder.audio_encoder.batch_norm)
        cast(Tensor, norm.running_mean).copy_(mean)
        cast(Tensor, norm.running_var).copy_(variance)


class TextTower(nn.Module):
    """BERT and its head: word pieces i64 [B, T] and their mask -> unit vectors f32 [B, dims], from [CLS]."""

    def __init__(self, encoder: nn.Module, dims: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(cast(int, encoder.config.hidden_size), dims)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The encoder's [CLS] state, f32 [B, width]."""
        states: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states[:, 0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode token sequences."""
        return unit_head(self.head, self.pooled(input_ids, attention_mask))


class Larp(nn.Module):
    """The two towers, the temperature, and what makes the text tower's input: caption clauses and tokenizer.

    A track's vector is l2(w a + (1 - w) t), w = `audio_share`: Eq. 11 at 0.5.

    The tokenizer must end captions at `max_tokens` and pad with its own pad token; `towers.py` sees to both.
    """

    def __init__(
        self,
        audio: AudioTower,
        text: TextTower,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        clauses: tuple[str, ...],
        temperature: float,
    ) -> None:
        super().__init__()
        self.audio = audio
        self.text = text
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.clauses = clauses
        self.temperature = nn.Parameter(torch.tensor(temperature))
        self.audio_share: Tensor
        self.register_buffer("audio_share", torch.tensor(0.5))

    @property
    def dims(self) -> int:
        """Size of the shared space."""
        return self.audio.head.out_features

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.temperature.device

    def tokens(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Word pieces and mask, i64 [B, longest] each, on the CPU."""
        encodings = self.tokenizer.encode_batch(list(captions))
        ids = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64)
        return ids, torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.int64)

    def encode_audio(self, log_mel: Tensor) -> Tensor:
        """Clips f32 [B, 1, 1001, 64] -> unit vectors f32 [B, dims]."""
        vectors: Tensor = self.audio(log_mel.to(self.device))
        return vectors

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Captions -> unit vectors f32 [B, dims]."""
        input_ids, attention_mask = self.tokens(captions)
        vectors: Tensor = self.text(input_ids.to(self.device), attention_mask.to(self.device))
        return vectors

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the temperature in [0.001, 0.5]."""
        self.temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)


class Fusion(nn.Module):
    """A playlist's vector from J of its tracks' (Eq. 6, 23, 24): l2(mean + self-attention), one layer for
    both towers.

    Padding is left out of keys, queries and means. The values start at zero, so that an untrained fusion is
    the plain mean: stage 3 begins where stage 2 ended.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.query = nn.Linear(dims, dims, bias=False)
        self.key = nn.Linear(dims, dims, bias=False)
        self.value = nn.Linear(dims, dims, bias=False)
        nn.init.zeros_(self.value.weight)

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Fuse f32 [B, J, d] with bool [B, J] -> unit vectors f32 [B, d]; a row with no track gives zeros."""
        vectors = vectors * present[..., None]
        attended = F.scaled_dot_product_attention(
            self.query(vectors),
            self.key(vectors),
            self.value(vectors),
            attn_mask=(present | ~present.any(1, keepdim=True))[:, None, :].expand(-1, present.shape[1], -1),
        )
        count = present.sum(1, keepdim=True).clamp(min=1)
        summed = (vectors + attended * present[..., None]).sum(1)
        return F.normalize(summed / count, dim=-1)
