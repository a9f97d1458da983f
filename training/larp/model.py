"""LARP's model: an audio tower and a text tower into one space."""

from collections.abc import Sequence
from typing import Self, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from index.models.caption import split_fields
from training.data.frontend import LOG_MEL, FrontEnd
from training.larp.extractor import Extractor
from training.larp.heads import FieldsHead, Head

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5


class AudioTower(nn.Module):
    """An audio encoder and its head: clips -> unit vectors f32 [B, dims].

    HTS-AT reads log-mel f32 [B, 1, 1001, 64] in dB; every other encoder what its `extractor` makes of the samples.
    fixed_norm: batch normalisations keep their statistics in training. Those of a checkpoint, or of `calibrate`, are
    better than a small batch's, and a batch may then be encoded in parts.
    """

    def __init__(
        self,
        encoder: nn.Module,
        dims: int,
        *,
        fixed_norm: bool = True,
        extractor: Extractor | None = None,
        whitened: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.extractor = extractor
        self.head = Head(self._width(), dims, whitened=whitened)
        self.fixed_norm = fixed_norm

    @property
    def front_end(self) -> FrontEnd:
        """What of the recordings it is to be fed with."""
        return LOG_MEL if self.extractor is None else self.extractor.front_end

    @torch.no_grad()
    def _width(self) -> int:
        if self.extractor is None:
            return cast(int, self.encoder.config.hidden_size)
        silence = self.extractor(np.zeros((1, self.extractor.front_end.clip_rows), np.float32))
        training = self.encoder.training
        self.encoder.eval()
        width = self.pooled(silence).shape[1]  # configs have no one name for it
        self.encoder.train(training)
        return width

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation, batch normalisations only where they are to learn."""
        super().train(mode)
        if self.fixed_norm:
            for module in self.encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def pooled(self, log_mel: Tensor) -> Tensor:
        """The encoder's answer before the head, f32 [B, width]: its own pooling if it has one, else the mean over
        time. log_mel: or the extractor's tensor.
        """
        if self.extractor is None:
            return cast(Tensor, self.encoder(log_mel).pooler_output)
        answer = self.encoder(**{self.extractor.input_name: log_mel})
        pooled = getattr(answer, "pooler_output", None)
        return self.extractor.mean(answer.last_hidden_state) if pooled is None else cast(Tensor, pooled)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Encode clips, as `pooled` takes them."""
        vectors: Tensor = self.head(self.pooled(log_mel))
        return vectors

    @torch.no_grad()
    def calibrate(self, mean: Tensor, variance: Tensor) -> None:
        """Set HTS-AT's input normalisation's running statistics, f32 [64] each.

        A tower from scratch then sees whitened log-mel from its first step, in evaluation and in its momentum
        copy too, instead of after the hundreds of steps that running averages would take.
        """
        norm = cast(nn.BatchNorm2d, self.encoder.audio_encoder.batch_norm)
        cast(Tensor, norm.running_mean).copy_(mean)
        cast(Tensor, norm.running_var).copy_(variance)


class TextTower(nn.Module):
    """BERT and its head: word pieces i64 [B, T] and their mask -> unit vectors f32 [B, dims].

    pooling: "cls", the state of [CLS] (the paper); "mean", the mean over the word pieces, as the encoders of
    sentence-transformers were trained. fields: how many texts a track has, each encoded by itself, for a `FieldsHead`;
    word pieces and mask are then i64 [B, fields, T], and a text of no more than `specials` pieces is missing. 0: one
    text, the caption.
    """

    def __init__(
        self,
        encoder: nn.Module,
        dims: int,
        *,
        pooling: str = "cls",
        whitened: bool = False,
        fields: int = 0,
        specials: int = 2,
    ) -> None:
        super().__init__()
        width = cast(int, encoder.config.hidden_size)
        self.encoder = encoder
        self.head: Head | FieldsHead
        if fields:
            self.head = FieldsHead(width, dims, fields, whitened=whitened)
        else:
            self.head = Head(width, dims, whitened=whitened)
        self.pooling = pooling
        self.fields = fields
        self.specials = specials

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The encoder's answer before the head, f32 [B, width], or of all fields, f32 [B, fields * width], zero where
        one is missing.
        """
        if not self.fields:
            return self._of_texts(input_ids, attention_mask)
        mask = attention_mask.flatten(0, 1)
        there = (mask.sum(1, keepdim=True) > self.specials).to(torch.float32)
        answers = self._of_texts(input_ids.flatten(0, 1), mask) * there
        return answers.unflatten(0, (-1, self.fields)).flatten(1)

    def _of_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            return states[:, 0]
        there = attention_mask[..., None].to(states.dtype)
        return (states * there).sum(1) / there.sum(1).clamp(min=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode token sequences, as `pooled` takes them."""
        vectors: Tensor = self.head(self.pooled(input_ids, attention_mask))
        return vectors


class Larp(nn.Module):
    """The towers, the temperature, and what makes the text tower's input: caption clauses and tokenizer.

    A track's vector is l2(w a + (1 - w) t), w = `audio_share`: Eq. 11 at 0.5. One of the towers may be missing: its
    vector is then the other's. The tokenizer must end captions at `max_tokens` and pad with its own pad token;
    `towers.py` sees to both.
    """

    def __init__(
        self,
        audio: AudioTower | None,
        text: TextTower | None,
        tokenizer: Tokenizer | None,
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
    def reads_fields(self) -> bool:
        """Whether captions are `index.models.caption.fields`, for a tower of as many."""
        return self.text is not None and self.text.fields > 0

    @property
    def names(self) -> tuple[str, ...]:
        """Of "audio" and "text" the towers that are there."""
        return tuple(name for name in ("audio", "text") if getattr(self, name) is not None)

    def tower(self, name: str) -> AudioTower | TextTower:
        """The tower "audio" or "text"; it must be there."""
        return cast(AudioTower | TextTower, getattr(self, name))

    @property
    def dims(self) -> int:
        """Size of the shared space."""
        return self.tower(self.names[0]).head.out_features

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.temperature.device

    def tokens(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Word pieces and mask, i64 [B, longest] each, or [B, fields, longest], on the CPU."""
        assert self.tokenizer is not None
        shape = (len(captions), len(self.clauses), -1) if self.reads_fields else (len(captions), -1)
        texts = split_fields(captions, len(self.clauses)) if self.reads_fields else list(captions)
        encodings = self.tokenizer.encode_batch(texts)
        nothing = [self.tokenizer.padding["pad_id"]]  # without special tokens texts may have no piece at all
        ids = torch.tensor([encoding.ids or nothing for encoding in encodings], dtype=torch.int64)
        mask = torch.tensor([encoding.attention_mask or [0] for encoding in encodings], dtype=torch.int64)
        return ids.view(shape), mask.view(shape)

    def encode_audio(self, log_mel: Tensor) -> Tensor:
        """Clips, as the audio tower takes them -> unit vectors f32 [B, dims]."""
        vectors: Tensor = self.tower("audio")(log_mel.to(self.device))
        return vectors

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Captions -> unit vectors f32 [B, dims]."""
        input_ids, attention_mask = self.tokens(captions)
        vectors: Tensor = self.tower("text")(input_ids.to(self.device), attention_mask.to(self.device))
        return vectors

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the temperature in [0.001, 0.5]."""
        self.temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)
