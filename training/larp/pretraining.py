"""One step of LARP: towers, momentum copies, queue, lookup tables and fusion meet the losses."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.larp.config import LarpConfig
from training.larp.losses import Keys, PlaylistSide, Relations, tpc, ttc, wtc
from training.larp.model import Fusion, Larp
from training.larp.queue import MomentumQueue, follow, momentum_copy


@dataclass(frozen=True)
class Batch:
    """B encoded tracks with their pairs; all on the device of the model but for the ids of `tracks`'
    relations.

    log_mel f32 [B, 1, 1001, 64]; input_ids and attention_mask i64 [B, T]; tracks i64 [B]: which of the
    training tracks; partner i64 [B]: place in the batch of a track that shares a playlist, -1 for none;
    playlist i64 [B], -1 for none; seeds i64 [B, J]: tracks of that playlist without the track itself, padded
    with -1.
    """

    log_mel: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    tracks: Tensor
    partner: Tensor
    playlist: Tensor
    seeds: Tensor


@dataclass(frozen=True)
class Neighbourhood:
    """How a batch and its playlists stand to the key columns [batch | queue]; bool tensors as in `losses`."""

    same: Tensor
    related: Tensor
    holds: Tensor
    held: Tensor


class Pretraining(nn.Module):
    """What is trained and what it is trained against, over `tracks` training tracks.

    online and fusion are the parameters; their momentum copies, the queue and the tables follow them.
    audio_table and text_table f32 [tracks, dims] are the latest vectors of every track (A and T of section
    3.2.3).
    """

    audio_table: Tensor
    text_table: Tensor

    def __init__(self, larp: Larp, config: LarpConfig, tracks: int) -> None:
        super().__init__()
        self.online = larp
        self.fusion = Fusion(larp.dims)
        self.twins = nn.ModuleDict(
            {
                "audio": momentum_copy(larp.audio),
                "text": momentum_copy(larp.text),
                "fusion": momentum_copy(self.fusion),
            }
        )
        self.queue = MomentumQueue(config.queue, larp.dims)
        self.register_buffer("audio_table", torch.zeros(tracks, larp.dims))
        self.register_buffer("text_table", torch.zeros(tracks, larp.dims))
        self._momentum = config.momentum
        self._pending: tuple[Tensor, Tensor, Tensor] | None = None

    def train(self, mode: bool = True) -> "Pretraining":
        """Switch the online parts; momentum copies stay in evaluation mode."""
        super().train(mode)
        self.twins.eval()
        return self

    def columns(self, tracks: Tensor) -> Tensor:
        """The tracks of the key columns of a batch, i64 [B + queue], -1 where the queue is empty."""
        return torch.cat([tracks, self.queue.ids])

    def losses(self, batch: Batch, neighbourhood: Neighbourhood, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Encode every clip and caption once and return the named losses, scalars."""
        audio = self.online.audio(batch.log_mel)
        text = self.online.text(batch.input_ids, batch.attention_mask)
        with torch.no_grad():
            key_audio = self.twins["audio"](batch.log_mel)
            key_text = self.twins["text"](batch.input_ids, batch.attention_mask)
            self._remember(audio, text, batch.tracks)
        self._pending = (key_audio, key_text, batch.tracks)
        keys = Keys(torch.cat([key_audio, self.queue.audio]), torch.cat([key_text, self.queue.text]))
        with torch.autocast(batch.log_mel.device.type, enabled=False):
            return self._contrast(audio, text, keys, batch, neighbourhood, names)

    def _contrast(
        self,
        audio: Tensor,
        text: Tensor,
        keys: Keys,
        batch: Batch,
        neighbourhood: Neighbourhood,
        names: tuple[str, ...],
    ) -> dict[str, Tensor]:
        filled = self.columns(batch.tracks) >= 0
        relations = Relations(neighbourhood.same, neighbourhood.related, filled)
        temperature = self.online.temperature
        out = {}
        if "wtc" in names:
            out["wtc"] = wtc(audio, text, keys, relations, temperature)
        if "ttc" in names:
            out["ttc"] = ttc(audio, text, keys, relations, batch.partner, temperature)
        if "tpc" in names:
            playlists = self._playlists(batch, neighbourhood)
            out["tpc"] = tpc(audio, text, playlists, keys, relations, temperature)
        return out

    def _playlists(self, batch: Batch, neighbourhood: Neighbourhood) -> PlaylistSide:
        present = batch.seeds >= 0
        audio, text = (table[batch.seeds.clamp(min=0)] for table in (self.audio_table, self.text_table))
        with torch.no_grad():
            key_audio, key_text = self.twins["fusion"](audio, present), self.twins["fusion"](text, present)
        return PlaylistSide(
            audio=self.fusion(audio, present),
            text=self.fusion(text, present),
            key_audio=key_audio,
            key_text=key_text,
            holds=neighbourhood.holds,
            held=neighbourhood.held,
            there=present.any(1),
        )

    def _remember(self, audio: Tensor, text: Tensor, tracks: Tensor) -> None:
        """Put the batch's newest vectors into the tables; of a track that stands twice the last one stays.

        Writing both would leave to the threads which one does, and no run could be repeated.
        """
        unique, inverse = tracks.unique(return_inverse=True)
        places = torch.arange(len(tracks), device=tracks.device)
        last = torch.zeros_like(unique).scatter_reduce_(0, inverse, places, "amax", include_self=False)
        self.audio_table[unique] = audio.detach()[last].to(self.audio_table.dtype)
        self.text_table[unique] = text.detach()[last].to(self.text_table.dtype)

    def after_step(self) -> None:
        """Let the momentum copies follow, put the last batch's keys into the queue, clamp the temperature."""
        follow(self.twins["audio"], self.online.audio, self._momentum)
        follow(self.twins["text"], self.online.text, self._momentum)
        follow(self.twins["fusion"], self.fusion, self._momentum)
        if self._pending is not None:
            self.queue.push(*self._pending)
            self._pending = None
        self.online.clamp_temperature()
