"""A synthetic world with a known answer: tracks of hidden factors, and an oracle that knows what is possible."""

from training.data.synthetic.config import Factor, WorldConfig, factors_of
from training.data.synthetic.oracle import KNOWLEDGE, Oracle
from training.data.synthetic.world import World, make_world

__all__ = ["KNOWLEDGE", "Factor", "Oracle", "World", "WorldConfig", "factors_of", "make_world"]
